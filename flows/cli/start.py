"""`recsys`, from its first moment: told to end while Python still imports, or where nobody else listens, it says so."""

import contextlib
import os
import signal


def main() -> None:
    """Run a command. Servers and flows put a handler of their own in the place of this one, and give it back."""
    signal.signal(signal.SIGTERM, _end)
    from flows.cli.app import main as command

    command()


def _end(number: int, _frame: object) -> None:
    """One sentence, by the plainest means; then the process ends as the signal ends it."""
    words = "recsys: ended by SIGTERM. What was finished is kept: the same command goes on from there.\n"
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, words.encode("ascii"))
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
