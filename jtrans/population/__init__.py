"""Many networks at once: where they lie, how they train, what is measured of them, how a run is saved and resumed."""
