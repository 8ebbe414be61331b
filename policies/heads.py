"""Policy heads: from an embedding to an action."""

from torch import Tensor, nn

from ..errors import BadInput, UnknownName, closest
from .settings import PolicySettings

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MlpHead(nn.Module):
    """CortexBench's head: BatchNorm1d over the whole input, an MLP, a last layer that starts small, perhaps a tanh.

    Args:
        inputs: width of the embedding.
        actions: width of an action.
        settings: layers, activation, normalisation.

    Raises:
        UnknownName: for an unknown activation.
        BadInput: for a layer of no width.
    """

    def __init__(self, inputs: int, actions: int, settings: PolicySettings) -> None:
        super().__init__()
        name = settings.activation
        if name not in _ACTIVATIONS:
            raise UnknownName(
                f"no activation {name!r}; there are: {', '.join(_ACTIVATIONS)}{closest(name, _ACTIVATIONS)}"
            )
        if any(width < 1 for width in settings.layers):
            raise BadInput(f"policy.layers is {settings.layers}; every width must be at least 1")
        layers: list[nn.Module] = [nn.BatchNorm1d(inputs)] if settings.batch_norm else []
        for width in settings.layers:
            layers += [nn.Linear(inputs, width), nn.Dropout(settings.dropout), _ACTIVATIONS[name]()]
            inputs = width
        last = nn.Linear(inputs, actions)
        last.weight.data *= settings.output_init_scale
        last.bias.data *= settings.output_init_scale
        self.layers = nn.Sequential(*layers, last, *([nn.Tanh()] if settings.tanh_output else []))

    def forward(self, embedding: Tensor) -> Tensor:  # (B, E) -> (B, A)
        return self.layers(embedding)
