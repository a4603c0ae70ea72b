//! `docklet-master status`: whether it runs, and whether it can do its work.

use docklet_daemon::config::Loaded;
use docklet_daemon::{Program, exit};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::{Failure, NAME, Outcome, running};

const PATIENCE: Duration = Duration::from_secs(3);

/// Where this machine reaches the public port.
fn own_address(loaded: &Loaded) -> SocketAddr {
    let ip = match loaded.config.proxy_ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, loaded.config.proxy_port)
}

/// The answer to `GET /readyz`.
fn readiness(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(64 << 10).read_to_string(&mut answer)?;
    Ok(answer)
}

pub(super) fn status(program: &Program, loaded: &Loaded) -> Outcome {
    let Some(pid) = running(program)? else {
        return Err(Failure { message: "not running".to_owned(), code: exit::NOT_RUNNING });
    };
    let address = own_address(loaded);
    let about = format!("{NAME} runs (process {pid}); the portal is at {}", loaded.config.portal_url);
    match readiness(address) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(about),
        Ok(answer) if answer.contains("\"store\":false") => {
            Ok(format!("{about}\netcd does not answer: what runs goes on running, nothing can be changed"))
        }
        Ok(answer) if answer.contains("\"database\":false") => {
            Ok(format!("{about}\nthe database does not answer: nobody can sign in"))
        }
        Ok(_) => Ok(format!("{about}\nit gives an answer that this program does not know")),
        Err(error) => Ok(format!("{about}\nit does not answer on {address}: {error}")),
    }
}
