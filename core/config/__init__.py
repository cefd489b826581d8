from core.config import router_kinds  # noqa: F401 (adds its kinds to core.config.model.ROUTERS)
