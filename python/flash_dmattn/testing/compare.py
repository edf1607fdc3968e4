"""The rule by which a result passes."""

import torch

ROUNDING = 2e-5
"""What float32 sums in another order may differ by, of terms around 1 or as large as the largest result."""


def assert_matches(actual: torch.Tensor, reference: torch.Tensor, eager: torch.Tensor, name: str) -> None:
    """Raise AssertionError unless `actual` is as good as an eager computation in its own dtype.

    Its largest error against the float64 `reference` is at most twice that of `eager`, plus one rounding of the largest
    value to the dtype of `actual`, plus :data:`ROUNDING`: where terms cancel exactly in `eager`, it has no error to
    measure by. Infinities and NaN are in the same places.

    Parameters
    ----------
    actual : torch.Tensor
        The result under test.
    reference : torch.Tensor
        The same in float64.
    eager : torch.Tensor
        The same by eager operations in the dtype of the inputs.
    name : str
        What the message calls the result.
    """
    if actual.shape != reference.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}")
    if actual.numel() == 0:
        return
    actual64, eager64 = actual.detach().double(), eager.detach().double()
    _assert_same_pattern(actual64, reference, name)
    finite = reference.isfinite() & eager64.isfinite()
    actual64, reference, eager64 = (t.masked_fill(~finite, 0.0) for t in (actual64, reference, eager64))

    largest = reference.abs().max().item()
    errors = (actual64 - reference).abs()
    rounding = torch.finfo(actual.dtype).eps * largest + ROUNDING * max(1.0, largest)
    allowed = 2 * (eager64 - reference).abs().max().item() + rounding
    worst = errors.max().item()
    if worst > allowed:
        where = tuple((errors == worst).nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: error {worst:.3e} at {where}, {actual64[where]:.6g} for {reference[where]:.6g}; "
            f"allowed {allowed:.3e} ({actual.dtype}, largest value {largest:.3g})"
        )


def _assert_same_pattern(actual: torch.Tensor, reference: torch.Tensor, name: str) -> None:
    for kind, holds in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        unequal = (holds(actual) != holds(reference)).sum().item()
        if unequal:
            raise AssertionError(f"{name}: {unequal} of {actual.numel()} elements differ in being {kind}")
