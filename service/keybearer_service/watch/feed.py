"""The changes of the store as the hub reads them: what is new, and when to look for it."""

from keybearer_service.storage import News, Store

PAGE = 500
"""The most changes that are read with one statement."""


class GapError(Exception):
    """Changes between a revision and the head are gone, or the history is another one."""


class WentBackError(GapError):
    """The head is behind a revision of the same history that was read before."""


class ChangeFeed:
    """Reads changes after a revision. One thread reads and waits; any thread may wake it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def head(self) -> News:
        """Return the epoch, the head and the oldest revision, without changes."""
        return self._store.changes_since(0, 0)

    def since(self, epoch: str, revision: int) -> News:
        """Return every change after a revision, up to a head that is read now.

        Raises:
            GapError: They are not all there, or the epoch is another one.
            StoreError: The store cannot be read.
        """
        news = self.page(epoch, revision, PAGE)
        changes = list(news.changes)
        while changes and changes[-1].revision < news.head:
            news = self.page(epoch, changes[-1].revision, PAGE)
            changes.extend(news.changes)
        return news._replace(changes=changes)

    def page(self, epoch: str, revision: int, limit: int) -> News:
        """Return the changes of the next `limit` revisions after one.

        Raises:
            GapError, StoreError: As `since`.
        """
        news = self._store.changes_since(revision, limit)
        if news.epoch == epoch and news.head < revision:
            raise WentBackError(f"the head went back from {revision} to {news.head}")
        if news.epoch != epoch or not news.continues(revision):
            raise GapError(f"revision {revision} of {epoch} cannot be continued")
        return news

    def wait(self, timeout_s: float | None) -> None:
        """Wait until there may be something new, at most for a time.

        Args:
            timeout_s: Seconds. Without one, only a commit of this process or `wake` ends the wait;
                with one, it is cut to the interval at which other servers' commits are polled.
        """
        poll_s = self._store.poll_interval_s
        if timeout_s is not None and poll_s is not None:
            timeout_s = min(timeout_s, poll_s)
        self._store.wait(timeout_s)

    def wake(self) -> None:
        """End the wait."""
        self._store.wake()
