"""How much each unit minds each format. METRICS is the list to start from.

Importing this folder loads no torch; a metric's file is loaded when it is first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .estimate import Estimate
    from .study import Study


@dataclass(frozen=True)
class Metric:
    """A sensitivity estimator: `sensitivity/metrics/<name>.py`, function `estimate`.

    `family` is what kind of evidence it rests on; `streams` says that it can run block by block (its file has a FLOW);
    `only` names the families of models that it is for, where it is not for all.
    """

    name: str
    family: str
    summary: str
    needs_data: bool = True
    streams: bool = False
    only: tuple[str, ...] = ()

    def estimate(self, study: Study) -> Estimate:
        """The file's `estimate(study)`, after `check`."""
        self.check(study)
        found: Estimate = self.module.estimate(study)
        return found

    def check(self, study: Study) -> None:
        """Raises ValueError when data is needed and there is none, when it is what the weights were rounded on, or when the
        metric is not for this kind of model. The renderings need not be made yet."""
        found = study.network.inventory.family
        if self.only and found not in self.only:
            raise ValueError(f"{self.name} is for {' and '.join(self.only)} models and this is a {found} one; use kl_fisher")
        if self.needs_data and study.part is None:
            raise ValueError(f"{self.name} needs calibration data; give some, or use weight_error")
        if self.needs_data and study.renderings.part is not None:
            from .calibration import assert_disjoint

            assert_disjoint(study.data, study.renderings.part)

    @property
    def module(self) -> Any:
        return import_module(f".metrics.{self.name}", __name__)


MIXTURES = ("mixture-of-experts",)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # Curvature: the second-order change of the output or of a loss.
        Metric(
            "kl_fisher",
            "curvature",
            "second-order estimate of the output's own divergence, one backward pass a batch (default)",
            streams=True,
        ),
        Metric(
            "kl_fisher_sequence",
            "curvature",
            "kl_fisher with the covariance between the positions of a sequence; noisier",
            streams=True,
        ),
        Metric("kfac", "curvature", "kl_fisher with inputs and gradients taken as independent (K-FAC)"),
        Metric(
            "fisher_diagonal",
            "curvature",
            "Fisher information of each weight by itself, products of different weights dropped",
            streams=True,
        ),
        Metric(
            "fisher_trace",
            "curvature",
            "mean Fisher information of the unit's weights times its squared weight error (FIT)",
            streams=True,
        ),
        Metric("empirical_fisher", "curvature", "kl_fisher with the labels of the data in place of random ones", streams=True),
        Metric("hessian_trace", "curvature", "mean curvature of the exact Hessian times squared weight error (HAWQ-V2)"),
        Metric("gradient_score", "curvature", "squared products of gradient and output change (NVIDIA Model Optimizer)"),
        Metric("delta_loss", "curvature", "absolute products of gradient and weight change, model quantized (AutoRound)"),
        # Reconstruction: what changes in the unit itself.
        Metric(
            "output_error", "reconstruction", "squared error of the unit's own output, the layer-wise Hessian proxy", streams=True
        ),
        Metric("noise_to_signal", "reconstruction", "noise to signal of the unit's own output, the reciprocal of SQNR"),
        Metric("gptq_error", "reconstruction", "the error GPTQ itself minimised, on the data of the rounding", needs_data=False),
        Metric("baq", "reconstruction", "BAQ's law of equal steps: what GPTQ would leave at the format's bits, by formula"),
        Metric("adaquant", "reconstruction", "squared output error after optimising the rounding for it (AdaQuant)"),
        Metric("weight_error", "reconstruction", "squared error of the weights; needs no data", needs_data=False),
        Metric(
            "relative_error", "reconstruction", "squared weight error over the unit's squared weights; no data", needs_data=False
        ),
        # Salience: which weights matter, from their size and their inputs.
        Metric("awq", "salience", "squared weight error weighed by the mean magnitude of the inputs (AWQ)"),
        Metric("wanda", "salience", "squared weight error weighed by the squared norm of the inputs (Wanda)", streams=True),
        Metric("optimal_brain", "salience", "squared output error left when all other weights answer (SparseGPT)"),
        Metric("slim", "salience", "salience of groups of 128 inputs times their relative error (SliM-LLM)"),
        Metric(
            "outlier_score", "salience", "outlier score of the matrix times weights and relative error; no data", needs_data=False
        ),
        Metric(
            "block_importance", "salience", "how far a block turns its input, times weights and relative error (QuantMoE-Bench)"
        ),
        # Relevance and information: a score of the unit times how much the format changes it.
        Metric(
            "relevance", "relevance", "layer-wise relevance propagation times noise to signal of the unit's output (LRP-QViT)"
        ),
        Metric(
            "activation_entropy", "information", "entropy of the clusters of a block's output tokens times weight error (LUQ)"
        ),
        Metric(
            "value_entropy",
            "information",
            "entropy that the unit's output loses at the format's bits, times its operations (QuantMCU)",
            streams=True,
        ),
        # Routing: what a mixture of experts sends where.
        Metric(
            "expert_frequency",
            "routing",
            "how often the router picks an expert, times how much of its weights a format loses",
            only=MIXTURES,
        ),
        Metric(
            "router_mass",
            "routing",
            "probability that the router gives an expert, times how much of its weights a format loses",
            only=MIXTURES,
        ),
        Metric(
            "expert_error",
            "routing",
            "share, router mass and error of an expert, comparable inside its block only (MC-MoE)",
            only=MIXTURES,
        ),
        # Measured: the network run with a unit rounded.
        Metric("divergence", "measured", "measured divergence, one unit at a time: slow, the judge of the others"),
        Metric(
            "noise_slope", "measured", "slope of the divergence against Gaussian noise times relative weight error (Q-Palette)"
        ),
        Metric("divergence_blocks", "measured", "measured divergence, units in one format and whole layers in all: fewer runs"),
        Metric("divergence_bisection", "measured", "measured divergence of groups of units, halved only where much is lost"),
        Metric("cross_entropy", "measured", "measured increase of the task's own loss, one unit at a time: slow and noisy"),
        Metric("cosine", "measured", "measured cosine distance of the outputs, one unit at a time: slow"),
        Metric("top1", "measured", "measured share of predictions that change their first choice, one unit at a time: slow"),
        Metric("content", "measured", "measured 1 - SSIM for units of content, noise to signal for the others (MixDQ): slow"),
        # Prior: before any data.
        Metric(
            "prior", "prior", "guess from another model's coefficients by role and this one's weight errors", needs_data=False
        ),
    )
}
