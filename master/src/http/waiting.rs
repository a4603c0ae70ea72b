//! What the public port says while the store has not answered yet: that the process is alive, what is missing, and to try
//! again in a moment.

use std::net::TcpListener;

use actix_web::dev::Server;
use actix_web::{App, HttpResponse, HttpServer, web};
use docklet_master_db::Db;
use docklet_types::problem::Code;

use super::problem::ApiError;
use super::{health, read, resource};

/// # Errors
/// The listener cannot be used.
pub fn serve(db: Db, listener: TcpListener) -> std::io::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(db.clone()))
            .service(resource("/healthz").route(read().to(health::healthz)))
            .service(resource("/readyz").route(read().to(readyz)))
            .default_service(web::to(unavailable))
    })
    .workers(1)
    // Whoever asks meanwhile comes again: the port is soon another server's.
    .keep_alive(actix_web::http::KeepAlive::Disabled)
    .shutdown_timeout(2)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}

async fn readyz(db: web::Data<Db>) -> HttpResponse {
    health::told(false, db.ping().await.is_ok())
}

async fn unavailable() -> Result<HttpResponse, ApiError> {
    Err(ApiError::new(Code::Unavailable, "etcd does not answer, so this master waits for it. Try again in a moment."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};

    fn ask(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.to_ascii_lowercase()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn health_is_honest_and_the_port_goes_on_to_the_next_server() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open_file(&dir.path().join("docklet.db")).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for _ in 0..2 {
            let server = serve(db.clone(), listener.try_clone().unwrap()).unwrap();
            let handle = server.handle();
            let ended = tokio::spawn(server);
            let answers = tokio::task::spawn_blocking(move || {
                ["GET /healthz", "GET /readyz", "POST /api/v1/vclusters"].map(|line| ask(address, line))
            });
            let [alive, ready, change] = answers.await.unwrap();
            assert!(alive.starts_with("http/1.1 200"), "{alive}");
            assert!(
                ready.starts_with("http/1.1 503") && ready.contains("\"store\":false,\"database\":true"),
                "{ready}"
            );
            assert!(change.starts_with("http/1.1 503") && change.contains("\nretry-after: 2\r"), "{change}");
            assert!(change.contains("application/problem+json") && change.contains("\"unavailable\""), "{change}");
            handle.stop(true).await;
            ended.await.unwrap().unwrap();
        }
    }
}
