"""The attributes' names are those of the conventions' own package."""

from __future__ import annotations

import importlib.metadata

from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.semconv.attributes import error_attributes, exception_attributes

import leveret_opentelemetry
from leveret_opentelemetry import _conventions


def test_names_are_those_of_the_conventions() -> None:
    ours = {
        _conventions.SYSTEM: messaging.MESSAGING_SYSTEM,
        _conventions.RABBITMQ: messaging.MessagingSystemValues.RABBITMQ.value,
        _conventions.OPERATION_NAME: messaging.MESSAGING_OPERATION_NAME,
        _conventions.OPERATION_TYPE: messaging.MESSAGING_OPERATION_TYPE,
        _conventions.DESTINATION: messaging.MESSAGING_DESTINATION_NAME,
        _conventions.ANONYMOUS: messaging.MESSAGING_DESTINATION_ANONYMOUS,
        _conventions.ROUTING_KEY: messaging.MESSAGING_RABBITMQ_DESTINATION_ROUTING_KEY,
        _conventions.DELIVERY_TAG: messaging.MESSAGING_RABBITMQ_MESSAGE_DELIVERY_TAG,
        _conventions.MESSAGE_ID: messaging.MESSAGING_MESSAGE_ID,
        _conventions.CONVERSATION_ID: messaging.MESSAGING_MESSAGE_CONVERSATION_ID,
        _conventions.MESSAGE_COUNT: messaging.MESSAGING_BATCH_MESSAGE_COUNT,
        _conventions.ERROR_TYPE: error_attributes.ERROR_TYPE,
        _conventions.EXCEPTION_MESSAGE: exception_attributes.EXCEPTION_MESSAGE,
        _conventions.EXCEPTION_STACKTRACE: exception_attributes.EXCEPTION_STACKTRACE,
        "send": messaging.MessagingOperationTypeValues.SEND.value,
        "process": messaging.MessagingOperationTypeValues.PROCESS.value,
    }

    assert list(ours) == list(ours.values())


def test_version_is_the_distributions() -> None:
    assert leveret_opentelemetry.__version__ == importlib.metadata.version("leveret-opentelemetry")
