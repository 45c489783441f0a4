"""CARE-RFT's penalty inside TRL's GRPOTrainer: docs/integrations.md.

TRL's loss adds beta * (exp(log ref - log pi) - (log ref - log pi) - 1) to each token's loss, the k3 estimate of
KL(pi || ref). With log m, m = alpha pi + (1 - alpha) ref, in the place of log ref, and differentiated through pi as
well, this is the k3 estimate of CARE-RFT's skew reverse KL, KL(pi || m) (arXiv 2602.00085; docs/method.md). TRL's
`use_bias_correction_kl` multiplies it by pi / old, which makes its gradient unbiased. All else is TRL's own.
"""

from dataclasses import dataclass, field
from importlib.metadata import version
from math import inf
from typing import TYPE_CHECKING, Any

from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from carerft.objective.regularizers import log_mixture

REFERENCE = "ref_per_token_logps"
"""TRL's name of the reference's log-probabilities among the inputs of its loss, (B, T)."""

_Trainer = GRPOTrainer if TYPE_CHECKING else object
REGULARIZERS = ("srkl", "rkl", "none")
ESTIMATORS = ("unbiased", "k3")


@dataclass
class CareGRPOConfig(GRPOConfig):
    """TRL's GRPOConfig with CARE-RFT's penalty. Its defaults are the paper's: alpha 0.8, beta 0.04.

    Raises ValueError for a value out of range, and for `estimator="unbiased"` with a ratio of whole sequences.
    """

    beta: float = field(default=0.04, metadata={"help": "Weight of the penalty in the loss."})
    regularizer: str = field(
        default="srkl",
        metadata={"help": "'srkl': skew reverse KL (CARE-RFT). 'rkl': reverse KL, as TRL's own. 'none': no penalty."},
    )
    alpha: float = field(default=0.8, metadata={"help": "The policy's share of the mixture, from 0 to below 1."})
    estimator: str = field(
        default="unbiased",
        metadata={"help": "'unbiased': sets use_bias_correction_kl. 'k3': its gradient is another divergence's."},
    )

    def __post_init__(self) -> None:
        if self.regularizer not in REGULARIZERS:
            raise ValueError(f"regularizer={self.regularizer!r}: choose one of {', '.join(REGULARIZERS)}.")
        if self.estimator not in ESTIMATORS:
            remedy = f"choose one of {', '.join(ESTIMATORS)}; the exact sum over the vocabulary needs `carerft train`"
            raise ValueError(f"estimator={self.estimator!r}: {remedy}.")
        for name, value, end, says in (
            ("alpha", self.alpha, 1, "a share from 0 to below 1; the paper's is 0.8"),
            ("beta", self.beta, inf, "a weight of 0 (no penalty) or more; the paper's is 0.04"),
        ):
            if not isinstance(value, (int, float)) or not 0 <= value < end:  # a YAML reader takes 4e-2 for a text
                raise ValueError(f"{name}={value!r}: write a number, {says}.")
        if self.regularizer == "none":
            self.beta = 0.0
        if self.regularizer == "rkl":
            self.alpha = 0.0
        self.use_bias_correction_kl = self.estimator == "unbiased"
        super().__post_init__()
        if self.beta != 0 and self.estimator == "unbiased" and self.importance_sampling_level != "token":
            raise ValueError(
                "estimator='unbiased' needs the ratio of each token, but importance_sampling_level="
                f"{self.importance_sampling_level!r} gives one of the whole sequence. Write estimator='k3'."
            )


class _LossInputs(dict):
    """The inputs of TRL's loss. The reference's log-probabilities may be read once the mixture stands in their place,
    and not before: a TRL that reads them earlier, or not at all, would train with another penalty and say nothing."""

    mixed = read = False

    def __getitem__(self, key: str) -> Any:
        if key == REFERENCE:
            if not self.mixed:
                raise _moved("reads the reference's log-probabilities before it computes the policy's")
            self.read = True
        return super().__getitem__(key)


class SkewReverseKL(_Trainer):
    """A mixin for GRPOTrainer and its subclasses: `class MyTrainer(SkewReverseKL, MyGRPOTrainer)`. `args` must be a
    CareGRPOConfig.

    Raises RuntimeError, before a step is taken, if the installed TRL computes its loss in another way.
    """

    _loss_inputs: _LossInputs | None = None
    _penalised = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if GRPOTrainer in cls.__mro__[: cls.__mro__.index(SkewReverseKL)]:
            remedy = f"Write class {cls.__name__}(SkewReverseKL, ...)"
            raise TypeError(f"{cls.__name__}: SkewReverseKL stands behind TRL's trainer, which ignores it. {remedy}.")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, CareGRPOConfig):
            raise TypeError(f"{type(self).__name__} needs args=CareGRPOConfig(...), not {type(self.args).__name__}.")
        self._alpha = self.args.alpha

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self._penalised = False
        loss = super().compute_loss(*args, **kwargs)
        if self.beta != 0.0 and not self._penalised:
            raise _moved("computes its loss without GRPOTrainer's _compute_loss (or a subclass replaces it)")
        return loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.beta == 0.0:
            return super()._compute_loss(model, inputs)
        if REFERENCE not in inputs:
            raise _moved(f"calls its loss without {REFERENCE}")
        self._loss_inputs = _LossInputs(inputs)
        try:
            loss = super()._compute_loss(model, self._loss_inputs)
            if not self._loss_inputs.read:
                raise _moved("computes its loss without the reference's log-probabilities")
            self._penalised = True
            return loss
        finally:
            self._loss_inputs = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Also called for the policy before the loss and for the reference; only within the loss is the policy's
        log-probability differentiable, and only there the mixture is made."""
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        inputs = self._loss_inputs
        if inputs is not None:
            log_pi, log_ref = result[0], dict.__getitem__(inputs, REFERENCE)
            if inputs.mixed or log_pi.shape != log_ref.shape:
                raise _moved("computes the policy's log-probabilities in several parts")
            inputs[REFERENCE] = log_mixture(log_pi, log_ref, self._alpha)
            inputs.mixed = True
        return result


class CareGRPOTrainer(SkewReverseKL, GRPOTrainer):
    """TRL's GRPOTrainer, whose KL penalty is the one of its CareGRPOConfig."""


def _moved(what: str) -> RuntimeError:
    return RuntimeError(
        f"TRL {version('trl')} {what}, so carerft can't put its penalty there. It was tested with TRL 1.16: "
        "pip install 'carerft[trl]' takes that version."
    )
