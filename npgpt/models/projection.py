"""A linear layer of a block, by its name, with its adapters if it has any.

    y = linear(x)                      with the weight and the bias called name
    y = linear(x) + lora(x)            with adapters; then the weight is frozen

Several matrices can be side by side in one weight, as those of q, k and v. Each of them, a module
in Hugging Face's words, has adapters of its own, which change its columns of y.
"""


def projection_forward(x, p, name, layers, modules=()):
    """x (..., I) -> y (..., O). p: the parameters around the layer. modules: the names of the
    matrices side by side in its weight; empty: the layer itself."""
    modules = modules or (name,)
    adapted = f"{modules[0]}.lora_A" in p
    y, linear = layers.linear_forward(x, p[f"{name}.weight"], p.get(f"{name}.bias"), adapted)
    start, adapters = 0, []
    for module in modules if adapted else ():
        A, B = p[f"{module}.lora_A"], p[f"{module}.lora_B"]
        columns = slice(start, start + B.shape[1])
        change, lora = layers.lora_forward(x, A, B)
        y[..., columns] += change
        adapters.append((module, columns, lora))
        start = columns.stop
    return y, (name, linear, adapters, layers)


def projection_backward(dy, cache, dp):
    """dy (..., O) -> dx (..., I); the gradients of the parameters are put into dp. With adapters
    that of the bias is not needed, and small beside dx."""
    name, linear, adapters, layers = cache
    dx, dw, db = layers.linear_backward(dy, linear)
    for kind, d in (("weight", dw), ("bias", db)):
        if d is not None:
            dp[f"{name}.{kind}"] = d
    for module, columns, lora in adapters:
        change, dp[f"{module}.lora_A"], dp[f"{module}.lora_B"] = layers.lora_backward(
            dy[..., columns], lora)
        dx += change
    return dx
