"""A browser that pages through the list of keys until it is ended: `-m console.paging ORIGIN`.

The token of its session comes by standard input. It prints a line once it has seen its first page.
"""

import sys

import httpx

from console.site import SESSION, Site


def main(origin: str, session: str) -> None:
    """Page through the list, from the first page on, again and again."""
    with httpx.Client(base_url=origin, timeout=60) as client:
        site = Site(origin, client)
        site.cookies[SESSION] = session
        assert site.is_signed_in
        sys.stdout.write("paging\n")
        sys.stdout.flush()
        while True:
            path = "/console/keys"
            while path:
                seen = site.get(path)
                assert seen.status == 200, seen.status
                path = next((one for one in seen.links if "page=" in one), "")


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.readline().strip())
