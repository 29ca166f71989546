"""Facts: what each published model is and can do, as rows read by one engine."""

from .facts import ModelFacts
from .fit import SHAPE_FINGERPRINTS, fitting_models, num_layers_of
from .models import MODELS
from .networks import NETWORKS
from .recognise import facts_for

__all__ = ["MODELS", "NETWORKS", "SHAPE_FINGERPRINTS", "ModelFacts", "facts_for", "fitting_models", "num_layers_of"]
