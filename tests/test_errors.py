import pytest

from edvit import errors
from edvit.errors import EdvitError, ServiceError, UserError, error_from

TREE = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EdvitError)]


@pytest.mark.parametrize("kind", TREE)
def test_every_class_says_how_it_is_told(kind):
    assert kind.code
    assert 400 <= kind.http_status < 600
    assert kind.exit_code in (1, 2)
    assert (kind.exit_code == 2) == issubclass(kind, UserError)
    assert (kind.http_status < 500) == issubclass(kind, UserError)
    assert kind.__doc__


def test_codes_are_unique():
    assert len({kind.code for kind in TREE}) == len(TREE)


@pytest.mark.parametrize("kind", TREE)
def test_an_error_comes_back_as_the_class_that_was_raised(kind):
    back = error_from(kind.code, "what is wrong")
    assert str(back) == "what is wrong"
    # InfeasibleError wants more than a message, and no peer raises it.
    assert type(back) is (ServiceError if kind is errors.InfeasibleError else kind)


def test_an_unknown_code_is_a_service_error():
    assert type(error_from("newer", "m")) is ServiceError
