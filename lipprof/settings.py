"""Settings of a profiled run: one validated, frozen model, filled from a profile and keywords.

A profile is a TOML file with any subset of the fields of ``Settings``; keywords win over it.
``lipprof profiles list`` shows the ones that are installed, in the folder ``profiles`` beside
this module.
"""

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from lipprof.errors import ConfigError
from lipprof.rule_text import read_rule, write_rule

Aggregate = Literal["trace", "mean", "max"]
Estimator = Literal["drift", "exact", "eigenarc"]


def byte_size(size: int | str) -> int:
    """Read a number of bytes, plain or as ``"4GiB"``.

    Args:
        size: the size.

    Returns:
        Bytes.

    Raises:
        ConfigError: it is no size.
    """
    try:
        return int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        raise ConfigError(f"Got {size!r}: expected a size in bytes, or as '4GiB'.") from None


class Settings(BaseModel):
    """Everything that decides what a measurement computes and when.  Defaults cite their source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # when
    every: int = Field(100, ge=1, description="measure at iterations 0, n, 2n, ...")
    wait: int = Field(0, ge=0, description="first iteration that may be measured")
    until: int | None = Field(None, ge=0, description="last iteration that may be measured")
    at: tuple[int, ...] | None = Field(None, description="measure at exactly these iterations")

    max_overhead: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="largest share of wall time to measure in: stretches the schedule, then "
        "computes less",
    )

    # the spectrum
    top: int = Field(5, ge=0, description="number of largest eigenvalues")
    bottom: int = Field(5, ge=0, description="number of smallest eigenvalues")
    tol: float = Field(
        1e-3, gt=0, lt=1, description="residual norm over the extreme eigenvalue of the same end"
    )
    max_matvecs: int = Field(300, ge=2, description="Hessian-vector products a spectrum may cost")
    basis_size: int | None = Field(
        None, ge=4, description="Lanczos vectors kept; default: see lipprof.linalg.memory"
    )
    diagonal_probes: int = Field(
        8, ge=0, description="Hutchinson probes for the diagonal and the trace; 0: none"
    )
    stability: bool = Field(
        True, description="compare the top eigenvalue that the optimizer sees with its edge"
    )
    blocks: str | tuple[str, ...] | None = Field(
        None,
        description="diagonal blocks whose extreme eigenvalues are recorded: tensor, module, or "
        "patterns of names",
    )
    engine: Literal["auto", "retained", "traced", "differences"] = Field(
        "auto", description="what computes products of a loss= closure; auto: the fastest that can"
    )
    cuda_graph: bool = Field(
        False, description="replay traced products on CUDA in one launch; for small networks"
    )
    memory_limit: ByteSize | None = Field(
        None, description="bytes a measurement may take beyond training's, also as 4GiB"
    )
    check_deterministic: bool = Field(
        True, description="evaluate a loss= closure twice before the first measurement"
    )
    mode: Literal["eval", "train"] = Field(
        "eval", description="mode of the modules while a loss= closure is evaluated"
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="how the loss= closure reduces over a probe microbatch"
    )
    seed: int = Field(0, description="of start vectors and probes; the global RNG is never used")

    # Hessian-Lipschitz parameters
    lipschitz: tuple[Estimator, ...] = Field(
        ("drift",),
        min_length=1,
        description="estimators of L per pair; the first serves ELMO's step and the regret. drift "
        "(Alg. 2) is always recorded; exact: the third derivative; eigenarc: Alg. 3, needs loss=",
    )
    superiority: bool = Field(
        False,
        description="try Newton's and gradient descent's step along each pair (App. E); needs "
        "loss=",
    )
    alpha: float = Field(
        0.9, ge=0, lt=1, description="moving average of |change of eigenvalue| / distance"
    )
    epsilon: float = Field(1e-12, gt=0, description="added to the distance (App. K)")
    bias_correction: bool = Field(True, description="divide by 1 - alpha^t, as Adam does")
    distance_floor: float = Field(
        0.1,
        ge=0,
        description="of L per tensor: shorter distances count as this fraction of their median",
    )

    # step length
    descents: bool = Field(
        False,
        description="measure the loss along the next step of either optimizer of AMOS, as rule "
        "descent does anyway, and along the one taken; needs loss=",
    )
    calibrate: bool = Field(
        False,
        description="find the learning rate in the first iterations, for AMOS one per side; needs "
        "loss=",
    )

    # advice
    units: Literal["tensor", "module"] | Annotated[int, Field(ge=1, strict=True)] | None = Field(
        None,
        description="what gets an answer: tensor, module, or the parameters of a chunk; default: "
        "what AMOS switches, else tensor",
    )
    rule: str = Field(
        "newton-safe",
        description="newton-safe: eq. 8; threshold: Alg. 2; others with their options, as in "
        "quantile(share=0.3)",
    )
    threshold: float = Field(2e-10, gt=0, description="of rule = threshold (App. K)")
    aggregate: Aggregate = Field(
        "trace",
        description="L of a tensor: of its mean curvature (trace), or the mean (Fig. 1) or maximum "
        "(App. K) of its entries' L",
    )
    denoise: bool = Field(
        True,
        description="take the probes' noise out of L per tensor; leave open what it would decide",
    )
    hysteresis: float = Field(
        2.0, ge=1, description="an answer flips when L passes the threshold by this factor"
    )
    dwell: int = Field(2, ge=1, description="and did so at this many measurements running")
    warmup: int = Field(
        0, ge=0, description="no answer before this iteration: AMOS's tensors stay where they start"
    )

    strict: bool = Field(False, description="raise when a measurement fails")
    swmr: bool = Field(
        True, description="readers may follow the file live; False for NFS and Lustre"
    )

    @field_validator("lipschitz", mode="before")
    @classmethod
    def _one_or_all(cls, value: Any) -> Any:
        if value == "all":
            return get_args(Estimator)
        return (value,) if isinstance(value, str) else value

    @field_validator("rule", mode="before")
    @classmethod
    def _rule_as_text(cls, value: Any) -> str:
        return write_rule(*read_rule(str(value)))

    @model_validator(mode="after")
    def _noise_needs_two_probes(self) -> "Settings":
        if self.denoise and self.diagonal_probes == 1:
            raise ValueError(
                "diagonal_probes=1 cannot tell its own noise: use 2 or more, or denoise=False"
            )
        return self

    @property
    def exact(self) -> bool:
        """Whether the eigenvalues are differentiated."""
        return "exact" in self.lipschitz

    def to_toml(self) -> str:
        """Write the settings as TOML that ``load_settings`` reads back; unset fields are left out.

        Returns:
            One ``name = value`` line per field.
        """
        lines = []
        for name, value in self.model_dump(exclude_none=True).items():
            lines.append(f"{name} = {_toml_value(value)}")
        return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value)


def profiles() -> dict[str, Path]:
    """List the installed profiles.

    Returns:
        Name to TOML file, in alphabetical order.
    """
    folder = Path(str(resources.files("lipprof"))) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_settings(profile: str | Path | None = None, **overrides: Any) -> Settings:
    """Settings from a profile, with keywords on top.

    Args:
        profile: name of an installed profile or path of a TOML file; None: the defaults.
        overrides: fields of ``Settings``; those that are None are ignored.

    Returns:
        The validated settings.

    Raises:
        ConfigError: unknown profile, unreadable TOML, unknown or invalid field.
    """
    values: dict[str, Any] = {} if profile is None else _read_profile(profile)
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = "; ".join(
            "".join(f"{'.'.join(map(str, e['loc']))}={e['input']!r}: " for _ in e["loc"][:1])
            + e["msg"].removeprefix("Value error, ")
            for e in error.errors()
        )
        known = ", ".join(Settings.model_fields)
        where = "" if profile is None else f" with profile {str(profile)!r}"
        raise ConfigError(
            f"Invalid settings{where}: {problems}. Known settings: {known}."
        ) from None


def _read_profile(profile: str | Path) -> dict[str, Any]:
    installed = profiles()
    path = installed.get(str(profile), Path(profile))
    if not path.is_file():
        raise ConfigError(
            f"There is no profile {str(profile)!r}. Installed: {', '.join(installed)}; "
            "or give the path of a TOML file."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}.") from None
