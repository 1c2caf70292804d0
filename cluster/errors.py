"""What can go wrong on the way to a cluster and be put right by the person who reads the message.

    ClusterError
    ├── SubmitError        a job that would not run there: what travels, paths, secrets, an address in clear
    ├── QueueError         a job, a name or a number that the queue does not have, or cannot do that to
    └── RayUnreachable     no answer, or not from a Ray that takes our token; the same request may do later

Every message says what is wrong, where, and what to do. The command prints it and ends with exit code 2.
"""

from __future__ import annotations


class ClusterError(Exception):
    """Base of all errors that a user can fix."""


class SubmitError(ClusterError):
    """A job that is refused before anything is sent."""


class QueueError(ClusterError):
    """Something asked of the queue that it cannot do."""


class RayUnreachable(ClusterError):
    """Ray gave no answer, so what was asked of it may have happened or not."""
