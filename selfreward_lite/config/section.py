"""What every group of settings is, and the types that several of them use."""

from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of settings: frozen, without unknown names; the text below each is its meaning."""

    # Of a whole number: beyond it, estimates of time and memory mean nothing.
    LARGEST: ClassVar = 2**32 - 1
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth(cls, value: Any, about: ValidationInfo) -> Any:
        """Check that no number is given as true or false, which Python takes for 1 and 0."""
        kind = cls.model_fields[about.field_name or ""].annotation
        kinds = (kind, *get_args(kind))
        if isinstance(value, bool) and bool not in kinds and {int, float} & set(kinds):
            number = "a whole number" if int in kinds else "a number"
            raise ValueError(f"give {number}, not {str(value).lower()}")
        return value

    @field_validator("*")
    @classmethod
    def _limit(cls, value: Any) -> Any:
        if isinstance(value, int) and value > cls.LARGEST:
            raise ValueError(f"at most {cls.LARGEST:,}")
        return value
