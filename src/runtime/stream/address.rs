//! Socket addresses in the kernel's form.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

/// An address as `connect` and `getpeername` want it.
#[repr(C)]
pub(super) union Address {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Address {
    /// The kernel's form of `address` and its length in bytes.
    pub(super) fn new(address: SocketAddr) -> (Address, libc::socklen_t) {
        match address {
            SocketAddr::V4(v4) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                (
                    Address { v4 },
                    size_of::<libc::sockaddr_in>() as libc::socklen_t,
                )
            }
            SocketAddr::V6(v6) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                (
                    Address { v6 },
                    size_of::<libc::sockaddr_in6>() as libc::socklen_t,
                )
            }
        }
    }

    /// Where the address lies, for the kernel.
    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        std::ptr::from_ref(self).cast()
    }
}

/// The address of the other end; `None` if the connection has already gone, or is not TCP.
pub fn peer_of(socket: &OwnedFd) -> Option<SocketAddr> {
    let mut length = size_of::<Address>() as libc::socklen_t;
    // SAFETY: all-zero is a valid value of every variant (plain integers).
    let mut address: Address = unsafe { std::mem::zeroed() };
    // SAFETY: `address` has `length` bytes to be written, and both outlive the call.
    let failed = unsafe {
        libc::getpeername(
            socket.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    if failed != 0 {
        return None;
    }
    // SAFETY: the family is the first field of every variant; every variant is plain integers, and
    // the whole union was initialised above, so reading the one that the family names is sound.
    unsafe {
        match i32::from(address.family) {
            libc::AF_INET => {
                let ip = Ipv4Addr::from(address.v4.sin_addr.s_addr.to_ne_bytes());
                let port = u16::from_be(address.v4.sin_port);
                Some(SocketAddr::V4(SocketAddrV4::new(ip, port)))
            }
            libc::AF_INET6 => {
                let v6 = address.v6;
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                let (flow, scope) = (v6.sin6_flowinfo, v6.sin6_scope_id);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
            }
            _ => None,
        }
    }
}

/// A new TCP socket of the right family, to be connected.
pub(super) fn new_socket(address: SocketAddr) -> std::io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Seconds of silence after which the kernel asks a peer whether it is still there, and between two
/// such questions.
static KEEPALIVE_IDLE_S: libc::c_int = 60;
static KEEPALIVE_INTERVAL_S: libc::c_int = 15;
/// Milliseconds for which a peer may leave sent bytes or questions unacknowledged, or its receive window
/// closed. Over it the connection breaks: a dead or stuck peer holds a socket no longer than this.
static UNACKNOWLEDGED_MS_MAX: libc::c_int = 90_000;

/// Sends small writes at once, and lets the ring, not the flag, decide about blocking.
pub(super) fn prepare(socket: &OwnedFd) {
    let (one, zero): (libc::c_int, libc::c_int) = (1, 0);
    let fd = socket.as_raw_fd();
    // SAFETY: all pointers are to integers that outlive the calls. Failure is not an error: a Unix
    // socket has no TCP_NODELAY, and works without.
    unsafe {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        let value = (&raw const one).cast();
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, value, length);
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, value, length);
        let value = (&raw const KEEPALIVE_IDLE_S).cast();
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, value, length);
        let value = (&raw const KEEPALIVE_INTERVAL_S).cast();
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, value, length);
        let value = (&raw const UNACKNOWLEDGED_MS_MAX).cast();
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value, length);
        libc::ioctl(fd, libc::FIONBIO, &raw const zero);
    }
}

/// Says that nothing more will be sent; the peer reads to the end of what was.
pub(super) fn shut_down_writing(socket: libc::c_int) {
    // SAFETY: a system call without pointers. It fails only if the peer has gone, which the receive
    // reports.
    unsafe { libc::shutdown(socket, libc::SHUT_WR) };
}
