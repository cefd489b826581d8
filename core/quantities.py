"""Large numbers as people say them."""


def short(value: float) -> str:
    """Three digits and a letter: 10.8k, 1.4G; powers of ten beyond the letters."""
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if 0.9995 * unit <= value < 999.5e12:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
