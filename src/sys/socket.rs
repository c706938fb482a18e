//! Sockets: creation, addresses, messages with descriptors.

use super::{check, check_size, owned, retry};
use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `socket(2)`; SOCK_CLOEXEC is always added.
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) }).map(owned)
}

/// `socketpair(2)` AF_UNIX; SOCK_CLOEXEC is always added.
pub fn socketpair(kind: c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors that the kernel writes.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) })?;
    Ok((owned(ends[0]), owned(ends[1])))
}

/// `accept4(2)`: non-blocking, close-on-exec; the peer's address is asked for elsewhere.
pub fn accept4(listener: BorrowedFd) -> io::Result<OwnedFd> {
    let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: address and length are null, so nothing is written.
    retry(|| check(unsafe { libc::accept4(listener.as_raw_fd(), address, length, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) })).map(owned)
}

/// A socket address of any family, as bytes for the kernel.
#[derive(Clone, Copy)]
pub struct SockAddr {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl SockAddr {
    /// Wraps a C address structure, whose size gives the length.
    ///
    /// # Panics
    /// Never: every sockaddr type fits sockaddr_storage by definition.
    pub fn new<T: Copy>(address: &T) -> SockAddr {
        assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>(), "sockaddr types fit sockaddr_storage");
        // SAFETY: all-zero is a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let to: *mut u8 = (&raw mut storage).cast();
        // SAFETY: the size was checked above; source and destination are distinct live objects.
        unsafe { std::ptr::copy_nonoverlapping(std::ptr::from_ref(address).cast::<u8>(), to, size_of::<T>()) };
        let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
        SockAddr { storage, length }
    }

    /// A pathname address of AF_UNIX; EINVAL when longer than sun_path.
    pub fn unix(path: &[u8]) -> io::Result<SockAddr> {
        // SAFETY: all-zero is a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = family(libc::AF_UNIX);
        if path.len() >= address.sun_path.len() || path.contains(&0) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        for (to, from) in address.sun_path.iter_mut().zip(path) {
            *to = libc::c_char::from_ne_bytes([*from]);
        }
        Ok(SockAddr::new(&address))
    }

    /// An AF_INET or AF_INET6 address.
    pub fn inet(address: std::net::SocketAddr) -> SockAddr {
        match address {
            std::net::SocketAddr::V4(v4) => SockAddr::new(&libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            std::net::SocketAddr::V6(v6) => SockAddr::new(&libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    /// The address as std's type; `None` for other families.
    pub fn to_inet(&self) -> Option<std::net::SocketAddr> {
        match c_int::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the storage holds a sockaddr_in, and storage is large and aligned enough.
                let v4 = unsafe { *(&raw const self.storage).cast::<libc::sockaddr_in>() };
                Some((std::net::Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()), u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that the storage holds a sockaddr_in6, and storage is large and aligned enough.
                let v6 = unsafe { *(&raw const self.storage).cast::<libc::sockaddr_in6>() };
                Some((std::net::Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port)).into())
            }
            _ => None,
        }
    }
}

/// An address family as its narrow field type.
pub fn family(af: c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(af).unwrap_or(0)
}

/// `bind(2)`.
pub fn bind(socket: BorrowedFd, address: &SockAddr) -> io::Result<()> {
    // SAFETY: the address is live and `length` bytes of it are read.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address.storage).cast(), address.length) }).map(drop)
}

/// `connect(2)`; EINPROGRESS is returned as an error.
pub fn connect(socket: BorrowedFd, address: &SockAddr) -> io::Result<()> {
    // SAFETY: the address is live and `length` bytes of it are read.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address.storage).cast(), address.length) }).map(drop)
}

/// `listen(2)`.
pub fn listen(socket: BorrowedFd, backlog: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

/// `shutdown(2)`.
pub fn shutdown(socket: BorrowedFd, how: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), how) }).map(drop)
}

/// `setsockopt(2)` with an int value.
pub fn setsockopt_int(socket: BorrowedFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(4);
    // SAFETY: `value` is a live int, read once.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) }).map(drop)
}

/// `getsockopt(SOL_SOCKET, SO_ERROR)`: the pending error of a connect, if any.
pub fn take_error(socket: BorrowedFd) -> io::Result<()> {
    let (mut errno, mut length): (c_int, libc::socklen_t) = (0, 4);
    // SAFETY: the kernel writes one int and its length.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut errno).cast(), &raw mut length) })?;
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// `getsockopt(SO_PEERCRED)` of a Unix socket: (pid, uid, gid).
pub fn peer_credentials(socket: BorrowedFd) -> io::Result<(libc::pid_t, libc::uid_t, libc::gid_t)> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(12);
    // SAFETY: the kernel writes one struct ucred and its length.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut credentials).cast(), &raw mut length)
    })?;
    Ok((credentials.pid, credentials.uid, credentials.gid))
}

/// `getsockname(2)`.
pub fn getsockname(socket: BorrowedFd) -> io::Result<SockAddr> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes into the storage, and the length.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) })?;
    // SAFETY: zeroed is valid, and the call filled what it wrote.
    Ok(SockAddr { storage: unsafe { address.assume_init() }, length })
}

/// `getpeername(2)`.
pub fn getpeername(socket: BorrowedFd) -> io::Result<SockAddr> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes into the storage, and the length.
    check(unsafe { libc::getpeername(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) })?;
    // SAFETY: zeroed is valid, and the call filled what it wrote.
    Ok(SockAddr { storage: unsafe { address.assume_init() }, length })
}

/// `send(2)` with MSG_NOSIGNAL.
pub fn send(socket: BorrowedFd, buf: &[u8], flags: c_int) -> io::Result<usize> {
    // SAFETY: the kernel reads at most `buf.len()` bytes from `buf`.
    retry(|| check_size(unsafe { libc::send(socket.as_raw_fd(), buf.as_ptr().cast(), buf.len(), flags | libc::MSG_NOSIGNAL) }))
}

/// `recv(2)`.
pub fn recv(socket: BorrowedFd, buf: &mut [u8], flags: c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
    retry(|| check_size(unsafe { libc::recv(socket.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), flags) }))
}

/// `sendto(2)` with MSG_NOSIGNAL.
pub fn sendto(socket: BorrowedFd, buf: &[u8], address: &SockAddr) -> io::Result<usize> {
    let to = (&raw const address.storage).cast();
    let (data, size) = (buf.as_ptr().cast(), buf.len());
    retry(|| {
        // SAFETY: `buf` and the address are live for their lengths, and only read.
        check_size(unsafe { libc::sendto(socket.as_raw_fd(), data, size, libc::MSG_NOSIGNAL, to, address.length) })
    })
}

/// `recvfrom(2)`: bytes and the sender.
pub fn recvfrom(socket: BorrowedFd, buf: &mut [u8]) -> io::Result<(usize, SockAddr)> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or(0);
    let (data, size) = (buf.as_mut_ptr().cast(), buf.len());
    let n = retry(|| {
        // SAFETY: the kernel writes at most `size` bytes into `buf`, at most `length` into the address, and the length.
        check_size(unsafe { libc::recvfrom(socket.as_raw_fd(), data, size, 0, address.as_mut_ptr().cast(), &raw mut length) })
    })?;
    // SAFETY: zeroed is valid, and the call filled what it wrote.
    Ok((n, SockAddr { storage: unsafe { address.assume_init() }, length }))
}

/// The most descriptors that one message carries here (the kernel's own SCM_MAX_FD is 253).
pub const MAX_FDS: usize = 64;

/// Room for one SCM_RIGHTS control message with [`MAX_FDS`] descriptors, aligned as cmsghdr wants it.
#[repr(C, align(8))]
struct ControlSpace([u8; 64 + MAX_FDS * size_of::<RawFd>()]);

/// `sendmsg(2)` with descriptors (SCM_RIGHTS) and MSG_NOSIGNAL.
pub fn send_with_fds(socket: BorrowedFd, buf: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    if fds.is_empty() {
        return send(socket, buf, 0);
    }
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut control = ControlSpace([0; 64 + MAX_FDS * size_of::<RawFd>()]);
    let mut iov = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    let data_length = u32::try_from(std::mem::size_of_val(fds)).unwrap_or(0);
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: pure arithmetic.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(data_length) } as _;
    // SAFETY: msg_control points at zeroed, aligned space of at least msg_controllen bytes.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: pure arithmetic.
    let length = unsafe { libc::CMSG_LEN(data_length) };
    // SAFETY: `header` lies inside `control`, with room for the header as CMSG_SPACE counted it.
    unsafe { header.write(libc::cmsghdr { cmsg_len: length as _, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS }) };
    // SAFETY: the address after a header that lies inside `control`.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: CMSG_SPACE reserved `data_length` bytes there; source and destination are distinct.
    unsafe { std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), data, std::mem::size_of_val(fds)) };
    // SAFETY: the message's pointers are all live; the kernel only reads.
    retry(|| check_size(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }))
}

/// `recvmsg(2)`: bytes and the descriptors that came along, close-on-exec. A truncated message is EMSGSIZE.
pub fn recv_with_fds(socket: BorrowedFd, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = ControlSpace([0; 64 + MAX_FDS * size_of::<RawFd>()]);
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<ControlSpace>() as _;
    // SAFETY: the kernel writes at most iov_len bytes into `buf` and msg_controllen into `control`.
    let n = retry(|| check_size(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) }))?;
    let mut fds = Vec::new();
    // SAFETY: the kernel has set msg_control and msg_controllen to what it wrote.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give only headers that lie inside the control space.
        let fields = unsafe { header.read() };
        if fields.cmsg_level == libc::SOL_SOCKET && fields.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the address after a header that lies inside `control`.
            let data: *const u8 = unsafe { libc::CMSG_DATA(header) };
            // SAFETY: pure arithmetic.
            let prefix = unsafe { libc::CMSG_LEN(0) };
            #[allow(clippy::unnecessary_cast)] // cmsg_len is 32 bits wide on some targets
            let count = (fields.cmsg_len as usize).saturating_sub(prefix as usize) / size_of::<RawFd>();
            for i in 0..count {
                // SAFETY: the kernel wrote `count` descriptors there, maybe unaligned; each is new and ours.
                let fd = unsafe { nth_fd(data, i) };
                fds.push(owned(fd));
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `header` is the current one.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((n, fds))
}

/// The `i`-th descriptor of an SCM_RIGHTS payload.
///
/// # Safety
/// `data` must point at a payload of more than `i` descriptors.
unsafe fn nth_fd(data: *const u8, i: usize) -> RawFd {
    // SAFETY: inside the payload by the caller's promise.
    let at = unsafe { data.add(i * size_of::<RawFd>()) };
    // SAFETY: as above; the read allows any alignment.
    unsafe { at.cast::<RawFd>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_travel_with_a_message() {
        let (a, b) = socketpair(libc::SOCK_SEQPACKET).unwrap();
        let (r, w) = crate::sys::fd::pipe2(0).unwrap();
        send_with_fds(a.as_fd(), b"hello", &[w.as_raw_fd()]).unwrap();
        let mut buf = [0; 16];
        let (n, fds) = recv_with_fds(b.as_fd(), &mut buf).unwrap();
        assert_eq!((&buf[..n], fds.len()), (&b"hello"[..], 1));
        drop(w);
        crate::sys::fd::write(fds[0].as_fd(), b"x").unwrap();
        drop(fds);
        let mut got = [0; 4];
        assert_eq!(crate::sys::fd::read(r.as_fd(), &mut got).unwrap(), 1);
        assert_eq!(crate::sys::fd::read(r.as_fd(), &mut got).unwrap(), 0);
    }
}
