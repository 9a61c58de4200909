"""The sandbox: stand-ins for the outside world that are as real as they can be, for `rotator demo` and for the tests.

Nothing in here is imported by the daemon. It needs the extra `rotator[sandbox]`.
"""
