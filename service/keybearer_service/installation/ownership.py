"""Whose files are whose: a server must be able to read what a command beside it has made.

What root makes goes to the owner of the directory that holds it, who could have made it there.
Links are never followed: that owner, whom root need not trust, may have put them there.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

OTHERS = stat.S_IRWXO
"""The mode bits of everybody who is neither the owner nor in the group."""


def user_name(uid: int) -> str:
    """Return how a message names a user: by name where there is one, and by number."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def give_open_file(descriptor: int, holder: os.stat_result) -> None:
    """Give a file that root has just made to the owner of its directory; other users own theirs.

    Raises:
        OSError: It cannot be given away.
    """
    if os.geteuid() == 0:
        os.fchown(descriptor, holder.st_uid, holder.st_gid)


def give(path: Path, holder: os.stat_result | None = None) -> None:
    """Give a file or a directory with all that is in it, as far as it is root's, like the above.

    Args:
        path: What root has made.
        holder: Whose it becomes; by default the owner of the directory that `path` is in.

    Raises:
        OSError: Something cannot be given away.
    """
    if os.geteuid() != 0:
        return
    holder = holder or path.parent.stat()
    uid, gid = holder.st_uid, holder.st_gid
    for _, directories, files, descriptor in os.fwalk(path):
        for name in (*directories, *files):
            if os.lstat(name, dir_fd=descriptor).st_uid == 0:
                os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
    if path.lstat().st_uid == 0:
        os.chown(path, uid, gid, follow_symlinks=False)


def problems(directory: Path, like: Path, besides: Path) -> Iterator[str]:
    """Yield what is wrong with owners and modes: files of others, and files open to everybody.

    Args:
        directory: Where to look, directories inside it included.
        like: The file whose owner every other one should have.
        besides: A directory whose files do not matter.

    Raises:
        OSError: The directory cannot be looked at.
    """
    owner = like.stat()
    for path in sorted(directory.rglob("*")):
        if besides in path.parents:
            continue
        try:
            found = path.lstat()
        except FileNotFoundError:  # a server beside us has removed it
            continue
        name = path.relative_to(directory)
        if found.st_uid != owner.st_uid:
            yield (
                f"{name}: belongs to {user_name(found.st_uid)} and {like.name} to "
                f"{user_name(owner.st_uid)}; run: chown {owner.st_uid}:{owner.st_gid} {path}"
            )
        if stat.S_ISREG(found.st_mode) and found.st_mode & OTHERS:
            yield f"{name}: is open to everybody; run: chmod o-rwx {path}"
