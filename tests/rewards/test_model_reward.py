import functools
import pickle

from rlhf_recipes.rewards.model_reward import ModelReward


class Twice(ModelReward):
    shown = ("factor",)

    def __init__(self, model, factor=2, *, only_by_name=None, name=None):
        self.factor = 2 * factor  # what is kept need not be what was given
        self.only_by_name = only_by_name
        self.__name__ = name or type(self).__name__


def test_it_is_pickled_as_what_it_was_made_with():
    reward = pickle.loads(pickle.dumps(Twice("folder", 3, name="mine", only_by_name=[1])))
    assert (reward.factor, reward.only_by_name, reward.__name__) == (6, [1], "mine")
    assert pickle.loads(pickle.dumps(reward)).factor == 6


def test_where_no_argument_is_by_name_alone_the_class_is_called():
    class Plain(ModelReward):
        def __init__(self, model, label=None, name=None):
            pass

    assert Plain("folder", name="mine").__reduce__() == (Plain, ("folder", None, "mine"))
    assert isinstance(Twice("folder").__reduce__()[0], functools.partial)


def test_it_tells_its_name_and_what_it_is_to_show():
    assert repr(Twice("folder", name="mine")) == "Twice(name='mine', factor=4)"
