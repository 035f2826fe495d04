"""Where `layermesh` and `python -m layermesh` begin: with interrupts in hand, before anything takes time."""

from layermesh.interrupts import catch_interrupts


def main() -> None:
    """Run the command line."""
    catch_interrupts()
    from layermesh.cli import main as run

    run()


if __name__ == "__main__":
    main()
