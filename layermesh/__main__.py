"""`python -m layermesh`."""

from layermesh.cli import main

if __name__ == "__main__":
    main()
