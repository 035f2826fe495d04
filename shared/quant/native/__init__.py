"""Products with packed matrices in C, built for this processor where there is a compiler."""
