"""torch's AdamW for eager training."""

import inspect
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, whose methods import torch._dynamo (1.6 CPU seconds) only to stay out of its way: here they don't.

    No optimizer is compiled here.
    """

    add_param_group: Any = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict: Any = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad: Any = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
