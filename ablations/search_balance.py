"""Which weights of the auxiliary losses, and which rate, suit a router best, when each router is tuned as much?"""

from sweeps.spec import Budget, Choice, Int, Log, Search

ROUTER = "model.router.kind"
LOAD_BALANCING = "objective.load_balancing_weight"

search = Search(
    question="Tuned with the same budget, does loss-free balancing reach a lower NELBO than the load-balancing loss?",
    space={
        ROUTER: Choice(("topk", "bias_balanced")),
        LOAD_BALANCING: Log(1e-4, 1.0, zero=True),
        "objective.z_loss_weight": Log(1e-5, 1e-1, zero=True),
        "model.router.bias_update_rate": Log(1e-4, 1e-1, when={ROUTER: ("bias_balanced",)}),
        "model.top_k": Int(1, 4),
        "optimizer.learning_rate": Log(2e-4, 2e-2),
    },
    control={ROUTER: "topk"},  # the rest as in the base config: the paper's weights
    base="proxy",
    match="active_flops",
    metric="val/nelbo",
    secondary=("load/max_vio",),
    compare=ROUTER,
    budget=Budget(trials=48),  # of each router
    seeds=range(2),
    margin=0.01,  # nats per token
    sizes={"quick": {"base": "tiny", "budget": Budget(trials=12), "seeds": (0,), "confirm": 5}},
)
