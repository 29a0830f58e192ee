"""A training step, and its batches."""

from npgpt.layers import Key
from npgpt.optim import clip_scale
from npgpt.parallel import Single


def train_step(model, optimizer, batches, grads, comm=None, *, lr, grad_clip=0.0):
    """Update the model's parameters once -> loss and norm of the gradients, scalars of the device.

    batches: the arguments of model.loss_and_grads, for each part of the batch that this rank
    computes; the losses of all parts and ranks sum to the loss. grads: the model's Gradients. comm:
    the Communicator; None: this is the only process. lr: the learning rate. grad_clip: the largest
    norm of the gradients; 0: no limit. Non-finite gradients leave the parameters unchanged.
    """
    comm, batches = comm or Single(), list(batches)
    comm.begin(grads, optimizer.shards, len(batches))          # zeros
    loss = 0
    for batch in batches:                                      # gradient accumulation
        loss = loss + model.loss_and_grads(*batch, into=grads)[0]
    loss = comm.all_reduce(loss)
    flat = comm.reduce_scatter(grads, optimizer.shards)        # sums this shard over all ranks
    grad_norm = comm.norm(flat, optimizer.shards)
    optimizer.step(flat, lr, clip_scale(grad_norm, grad_clip))
    comm.all_gather(model.params.flat, optimizer.shards)       # each rank gets all shards
    return loss, grad_norm


def batches_of_step(data, config, step, comm):
    """The batches of a step that this rank computes, one for each part of gradient accumulation:
    (idx, targets, key, count), as for model.loss_and_grads. The whole batch and its dropout do not
    depend on the numbers of parts and ranks."""
    c = config
    rows = c.batch_size * c.grad_accum
    start, stop = comm.rows(c.batch_size)
    for part in range(0, rows, c.batch_size) if comm.computes else ():
        idx, targets = data.batch(c.seed, step, rows, part + start, part + stop)
        yield idx, targets, Key(c.seed, step, part + start), tokens_in_step(c, data.block_size)


def tokens_in_step(config, block_size):
    """The number of tokens in a step."""
    return config.batch_size * config.grad_accum * block_size
