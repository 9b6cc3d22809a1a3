"""The exceptions that are meant for people: what was wrong, where, and what to do."""

from __future__ import annotations

import errno


class WeaksegError(Exception):
    """A mistake or a mishap that the user can mend.

    The command line prints its text without a traceback and exits with status 1. The text names the file
    or the setting, what was found, what was expected, and what to do next.
    """


class Stopped(Exception):
    """The user stopped the work (Ctrl-C). The text says what is kept and how to go on."""


OUT_OF_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "not enough memory", "std::bad_alloc")
OUT_OF_FILES = ("Too many open files", "items of ancdata")
"""What the exceptions of PyTorch and of its worker processes say, which have no type of their own."""


def out_of_memory(error: BaseException) -> bool:
    """Whether this exception of Python, NumPy or PyTorch says that the computer's or the GPU's memory is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def explain(error: BaseException) -> str | None:
    """What an exception that is not ours means for the user, and what to do; None where it can only be a bug."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"The disk is full{where}. Free some space and run the same command again; finished work is kept."
    if type(error).__name__ == "OutOfMemoryError":
        return "The GPU's memory is full. Make batch_size smaller, or accumulate=2 with the same batch_size."
    if out_of_memory(error):
        return (
            "The computer's memory is full. Make batch_size, augment.crop or runtime.workers smaller, or read very "
            "large images scaled down (data.long_side). Finished work is kept."
        )
    text = str(error)
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or any(
        sign in text for sign in OUT_OF_FILES
    ):
        return "Too many files are open at once. Raise the limit (`ulimit -n 4096`), or make runtime.workers smaller."
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return (
            "The system ended a process that loads images, most often because the memory, or the shared memory in "
            "/dev/shm, was full. Make runtime.workers or batch_size smaller."
        )
    if isinstance(error, RuntimeError) and "start new thread" in text:
        return "The system allows no further threads. Raise the limit (`ulimit -u`), or make runtime.workers smaller."
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"{error.filename or 'The operating system'}: {error.strerror}."
    return None
