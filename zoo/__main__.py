"""`python -m zoo <command>`: the same as `zoo <command>`."""

from zoo.cli import main

if __name__ == "__main__":
    main()
