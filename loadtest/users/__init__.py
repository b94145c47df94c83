"""A user class a protocol."""

from loadtest.users.grpc_user import GrpcUser
from loadtest.users.http_user import HttpUser
from loadtest.users.rest_user import RestUser

__all__ = ["GrpcUser", "HttpUser", "RestUser"]
