"""Refuse a base image that is not pinned, or whose Python was built without optimisation.

    python check_base.py IMAGE@sha256:DIGEST

A tag can be moved to another image; a digest cannot. A Python without profile-guided optimisation
serves the same answers noticeably slower, and nothing else would say so.
"""

import re
import sys
import sysconfig

PINNED = re.compile(r".+@sha256:[0-9a-f]{64}")
PROFILE_USED = ("-fprofile-use", "-fprofile-instr-use")


def problem(base: str) -> str | None:
    """Return what is wrong with the base image, None for nothing."""
    if PINNED.fullmatch(base) is None:
        return f"BASE is {base!r}: give it with its digest, as python:3.13-slim@sha256:DIGEST"
    if sysconfig.get_config_var("Py_DEBUG"):
        return f"the Python of {base} is a debug build"
    # Not PGO_PROF_USE_FLAG: every build has that, whether it was used or not.
    configured = str(sysconfig.get_config_var("CONFIG_ARGS")).replace("'", "").split()
    compiled = str(sysconfig.get_config_var("PY_CFLAGS_NODIST"))
    if "--enable-optimizations" in configured or any(flag in compiled for flag in PROFILE_USED):
        return None
    return (
        f"the Python of {base} was built without --enable-optimizations, or hides it as Debian's "
        "own does: take an official python image"
    )


if __name__ == "__main__":
    sys.exit(problem(" ".join(sys.argv[1:])))
