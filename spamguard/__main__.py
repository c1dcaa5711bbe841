"""`python -m spamguard`: the command line for this very Python, as the daemon starts it."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="spamguard")
