"""What can be wrong with a placement, found before anything is compiled."""

from jaxscale.errors import UserError


class PlacementError(UserError):
    """A model, a batch or a plan does not fit the mesh."""


class AxisCollision(PlacementError):
    """Two dims of one array would be split over the same mesh axis."""


class NotDivisible(PlacementError):
    """A dim does not split evenly over its mesh axes."""
