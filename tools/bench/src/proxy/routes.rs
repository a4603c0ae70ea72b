//! How long after its node is ready an app's address leads there.

use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::site::{Door, Site, SiteError};

/// What the proxy says of a port that took the connection and does not speak HTTP, which `sshd` does not.
const REACHED: &str = "something that is not HTTP";
const SSH: u16 = 22;

/// Makes a node and asks for its port 22 all the time from before it is there. Milliseconds from the answer that the node
/// is ready to when the first request was sent that was led into it; 0 where that was earlier.
pub async fn measure(site: &mut Site) -> Result<f64, SiteError> {
    let target = site.create().await?;
    let reached = async {
        let door = loop {
            // The address is there as soon as the node has a place.
            match site.door(SSH).await {
                Ok(door) => break door,
                Err(SiteError::SignIn { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(e) => return Err(e),
            }
        };
        loop {
            // The route was there when the request that it served was sent; what sshd takes to fork and answer comes after.
            let asked = Instant::now();
            if led(site, &door).await? {
                return Ok(asked);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let ready = async { site.ready(target).await.map(|()| Instant::now()) };
    let (reached, ready) = tokio::try_join!(reached, ready)?;
    Ok(reached.saturating_duration_since(ready).as_secs_f64() * 1e3)
}

async fn led(site: &Site, door: &Door) -> Result<bool, SiteError> {
    let wrong = |e| SiteError::Connect(site.server.to_string(), e);
    let mut stream = TcpStream::connect(site.server).await.map_err(wrong)?;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\nAccept: application/json\r\nConnection: close\r\n\r\n",
        door.host, door.cookie
    );
    stream.write_all(request.as_bytes()).await.map_err(wrong)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(wrong)?;
    Ok(answer.contains(REACHED))
}
