"""Everything a run loads and checks before it writes anything: encoder, untrained policy, size of the buffer."""

from dataclasses import dataclass, replace

from ...encoders.load import Backbone
from ...envs.features import task_features
from ...envs.rendering import check_rendering
from ...errors import BadInput, CheckpointError
from ...run_folder import read_json
from ..build import PolicyDesign, VisionPolicy, build_policy
from ..cloning import load_backbone
from ..loaded import LoadedPolicy, load_policy
from ..policy import EncoderIdentity
from .embedded_env import embedded_space
from .extractor import mlp_of
from .learner import check_algorithm
from .plan import RLPlan, check_plan
from .replay import require_memory
from .states import latest_state


@dataclass
class Preparation:
    """A run that can start."""

    model: VisionPolicy  # the actor is written into it
    normalise: bool  # embeddings are scaled by running statistics
    initial: LoadedPolicy | None  # initialises the actor
    buffer: int  # memory of the buffer [bytes]

    @property
    def encoder(self) -> EncoderIdentity | None:
        """The encoder that the run starts with."""
        return self.model.spec.encoder


def prepare(plan: RLPlan) -> Preparation:
    """Load what a run starts with and refuse what cannot run, without writing anything.

    Raises:
        UnknownName: for an algorithm, a camera or a task that does not exist.
        BadInput: for settings that do not go together, or a buffer that does not fit into memory.
        CheckpointError: if the encoder is not that of ``init_from=`` or of the state to resume from.
    """
    check_plan(plan)
    check_algorithm(plan.algorithm, plan.envs)
    backbone = load_backbone(plan.design.encoder)
    if backbone is not None and plan.finetune:
        if not backbone.network.can_finetune:
            raise BadInput(f"finetune=true: {plan.design.encoder} cannot be fine-tuned; use a Pixio encoder")
        backbone.weights = "trained"  # by this run
    model, normalise = _new_model(plan, backbone)
    buffer = require_memory(embedded_space(model), model.spec.action_dim, plan.algorithm)
    initial = None if plan.init_from is None else load_policy(plan.init_from)
    if initial is not None:
        _check_initial(plan, model, initial)
    if state := latest_state(plan.folder):
        saved = read_json(state / "state.json")["numbers"]["encoder"]
        _check_same_encoder(model.spec.encoder, None if saved is None else EncoderIdentity(**saved), str(state))
    if "rgb" in plan.task.observe:
        check_rendering()
    return Preparation(model, normalise, initial, buffer)


def _new_model(plan: RLPlan, backbone: Backbone | None) -> tuple[VisionPolicy, bool]:
    """Return the policy that the actor is written into, and whether embeddings are scaled by running statistics."""
    features = task_features(plan.task)
    images = tuple(key for key, feature in features.items() if feature.kind == "image")
    cameras = images if plan.design.observes_images else ()

    def build(design: PolicyDesign) -> VisionPolicy:
        return build_policy(design, features, cameras, backbone, plan.seed)

    model = build(plan.design)
    policy = mlp_of(model, "the actor")
    if policy.config.batch_norm and (model.vision.trainable or policy.neck.trainable):
        config = replace(policy.config, batch_norm=False)
        model = build(replace(plan.design, config=config))
    return model, mlp_of(model, "the actor").config.batch_norm


def _check_initial(plan: RLPlan, model: VisionPolicy, initial: LoadedPolicy) -> None:
    """Refuse a policy whose encoder is not the run's.

    Raises:
        CheckpointError: if it has another encoder, or one that was trained with it and would not be trained here.
    """
    source = f"init_from={plan.init_from}"
    if initial.vision.backbone is not None and not plan.finetune:
        raise CheckpointError(f"{source} has an encoder that was trained with it; add finetune=true")
    _check_same_encoder(model.spec.encoder, initial.spec.encoder, source)


def _check_same_encoder(own: EncoderIdentity | None, other: EncoderIdentity | None, where: str) -> None:
    """Refuse another encoder than a checkpoint's.

    Raises:
        CheckpointError: with both hashes.
    """
    if (own is None) != (other is None) or (own and other and own.fingerprint != other.fingerprint):
        names = ["none" if each is None else f"{each.name} ({each.fingerprint})" for each in (own, other)]
        raise CheckpointError(
            f"the encoder is {names[0]}, that of {where} is {names[1]}; give encoder= the one it was trained on"
        )
