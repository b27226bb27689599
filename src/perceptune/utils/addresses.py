"""Addresses that may be connected to: global ones only, and none that is translated to another address."""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Networks that `is_global` may accept and whose addresses are translated to the other IP version.
_DETOURS = tuple(
    ipaddress.ip_network(net) for net in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48", "::/96")
)
_SHARED = ipaddress.ip_network("100.64.0.0/10")


def is_public(text: str) -> bool:
    """Return whether an address, as a resolver returns it, is on the public internet."""
    try:
        address: Address = ipaddress.ip_address(text)
    except ValueError:  # also raised for one with a scope, such as fe80::1%eth0
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address.scope_id is not None or any(address in net for net in _DETOURS):
            return False
    elif address in _SHARED:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified
