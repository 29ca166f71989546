"""What a computation takes is booked as it runs, without memory."""

import torch
from torch import nn

from reelora.plan.trace import Cost, trace

META = torch.device("meta")


def test_tensors_count_as_long_as_they_live():
    def compute():
        first = torch.empty(100, device=META)
        second = first + 1
        del first
        return second + torch.empty(50, device=META).sum()

    cost = trace(compute)
    assert cost.peak_bytes == 4 * (100 + 1 + 100)  # at the last sum: the fifty are gone
    assert cost.kept_bytes == 4 * 100


def test_views_and_what_was_there_before_cost_nothing():
    there = torch.empty(10, 10, device=META)
    assert trace(lambda: there.t()[2:].view(8, 10)).peak_bytes == 0
    assert trace(lambda: there.add_(1)).peak_bytes == 0


def test_products_are_counted_by_kind():
    x, w = torch.empty(3, 4, device=META), torch.empty(4, 5, device=META)
    tokens = torch.empty(1, 2, 6, 8, device=META)
    image, kernel = torch.empty(1, 2, 5, 5, device=META), torch.empty(3, 2, 3, 3, device=META)

    def compute():
        torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        torch.nn.functional.conv2d(image, kernel)
        return x @ w

    assert trace(compute).flops == {
        "product": 2 * 3 * 4 * 5,
        "attention": 2 * (2 * 2 * 6 * 6 * 8),
        "convolution": 2 * 3 * 2 * 9 * 9,
    }


def test_attention_never_holds_the_table_of_all_pairs():
    tokens = torch.empty(1, 1, 4096, 8, dtype=torch.bfloat16, device=META)
    cost = trace(lambda: torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens))
    assert cost.peak_bytes < 4096 * 4096


def test_real_attention_is_as_always_afterwards_and_meanwhile():
    tokens = torch.randn(1, 1, 3, 4)
    stock = torch.nn.functional.scaled_dot_product_attention
    expected = stock(tokens, tokens, tokens)
    results = []
    trace(lambda: results.append(torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)))
    assert torch.equal(results[0], expected)
    assert torch.nn.functional.scaled_dot_product_attention is stock


def test_what_a_backward_pass_needs_is_held_until_it_is_done():
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).to(META)
    x = torch.empty(100, 8, device=META)

    def learn():
        model(x).square().mean().backward()

    with torch.no_grad():
        forward = trace(lambda: model(x))
    step = trace(learn)
    assert step.peak_bytes > forward.peak_bytes
    assert step.kept_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert step.flops["product"] == 3 * forward.flops["product"] - 2 * 100 * 8 * 8  # x itself needs no gradient


def test_steps_that_are_alike_need_not_all_be_run():
    one, two = (Cost(peak_bytes=n, kept_bytes=n, flops={"product": 10 * n}, calls=n) for n in (3, 5))
    assert one.extended(two, 4) == Cost(peak_bytes=11, kept_bytes=11, flops={"product": 110}, calls=11)
    assert one.repeated(2) == Cost(peak_bytes=3, kept_bytes=3, flops={"product": 60}, calls=6)
