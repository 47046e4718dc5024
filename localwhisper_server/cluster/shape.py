"""The options of a cluster that one server does not have. No Ray."""

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """How many replicas, and what each gets of its machine."""

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(default=2, ge=1, description="Engine replicas of each model, or the fewest of them.")
    max_replicas: int = Field(
        default=0, ge=0, description="The most engine replicas, for autoscaling; 0: always --replicas."
    )
    faces: int = Field(default=1, ge=1, description="Replicas of the HTTP face.")
    cpus: int = Field(default=1, ge=1, description="CPU cores of each engine replica.")
    gpus: float = Field(default=0.0, ge=0, description="GPUs of each engine replica; 0.5: two of them share one.")
    sound: float = Field(
        default=60.0, gt=0, description="With autoscaling: seconds of sound waiting for a replica before one is added."
    )
