//! rtnetlink and nfnetlink by hand: no `ip` program, no library.
//!
//! Builders return finished bytes, so that a container's child can send what the daemon decided; [`Socket`] sends.

pub mod address;
pub mod link;
pub mod message;
mod socket;

pub use message::Message;
pub use socket::{Failure, Reply, Socket};

// linux/if_link.h and linux/if_addr.h, which libc names only in part.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;

#[cfg(test)]
pub(crate) mod tests {
    //! Tests of the deed run in a thread with a network namespace of its own, which ends with the thread.

    /// Runs `test` in a fresh network namespace; skipped, and said so, where that is not allowed.
    pub(crate) fn in_new_netns(test: impl FnOnce() + Send + 'static) {
        let run = std::thread::spawn(|| match crate::sys::process::unshare(libc::CLONE_NEWNET) {
            Ok(()) => test(),
            Err(e) => eprintln!("skipped: no new network namespace: {e}"),
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
