"""Shapes and their sizes: a file to try `cg-local fill` on."""


class Rectangle:
    """A rectangle with its sides in metres."""

    def __init__(self, width, height):
        self.height = height

    def area(self):
        """Return the area in square metres."""
        return self.width * self.height

    def perimeter(self):
        """Return the length of all four sides in metres."""
        return 2 * (self.width + self.height)
