"""M-brokers: containers that host coordination policies."""

from mbroker.action import Action, Notify, SetFrequency, SetPState, Severity
from mbroker.broker import Broker, Budget, Hosted, attributed
from mbroker.host import Domain, Host
from mbroker.policy import Policy

__all__ = [
    "Action",
    "Broker",
    "Budget",
    "Domain",
    "Host",
    "Hosted",
    "Notify",
    "Policy",
    "SetFrequency",
    "SetPState",
    "Severity",
    "attributed",
]
