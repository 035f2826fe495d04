"""`python -m layermesh`."""

from layermesh.interrupts import catch_interrupts

if __name__ == "__main__":
    catch_interrupts()
    from layermesh.cli import main

    main()
