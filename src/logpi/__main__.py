"""`python -m logpi` is `logpi`."""

from logpi.cli import main

if __name__ == "__main__":
    main()
