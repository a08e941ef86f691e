from rlhf_recipes.rewards.workbench.show import bar_lines


def test_a_bar_for_each_value_of_a_few():
    assert bar_lines([0.0, 1.0, 1.0, 1.0, 1.0, None], width=12) == ["0 ██       1", "1 ████████ 4"]
    assert bar_lines([0.0, 1.0, 1.0, 1.0], width=12, plain=True) == ["0 ###      1", "1 ######## 3"]


def test_bins_of_many_values():
    lines = bar_lines([i / 10 for i in range(20)] + [0.05, 7.9], width=40)
    assert [line.split("█")[0].split("▌")[0].strip() for line in lines[:2]] == ["0 to 1", "1 to 2"]
    assert [int(line.split()[-1]) for line in lines] == [11, 10, 0, 0, 0, 0, 0, 1]
    assert {len(line) for line in lines} == {40}


def test_nothing_to_draw():
    assert bar_lines([None, None], width=40) == ["applies to no row"]
