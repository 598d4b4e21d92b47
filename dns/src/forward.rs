//! Questions about other zones go to the machine's resolvers, as they came.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// How long a resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions under way at once; more are refused.
const AT_ONCE: usize = 512;
/// The largest answer over UDP that EDNS can announce.
const DATAGRAM: usize = 65_535;

pub struct Forward {
    resolvers: Vec<SocketAddr>,
    slots: Semaphore,
}

impl Forward {
    /// From the text of a resolv.conf. `own` addresses are left out: a question must not come back.
    pub fn new(resolv_conf: &str, own: &[IpAddr]) -> Self {
        let resolvers = nameservers(resolv_conf)
            .filter(|ip| !own.contains(ip))
            .map(|ip| SocketAddr::new(ip, 53))
            .collect();
        Self::to(resolvers)
    }

    /// To these.
    pub fn to(resolvers: Vec<SocketAddr>) -> Self {
        Self { resolvers, slots: Semaphore::new(AT_ONCE) }
    }

    /// The answer of the first resolver that gives one.
    pub async fn ask(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let _slot = self.slots.try_acquire().ok()?;
        for resolver in &self.resolvers {
            let asked = async {
                if tcp {
                    over_tcp(*resolver, question).await
                } else {
                    over_udp(*resolver, question).await
                }
            };
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) if is_answer(&answer, question) => return Some(answer),
                Ok(Ok(_)) => tracing::debug!(%resolver, "answer to another question"),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver"),
                Err(_) => tracing::debug!(%resolver, "resolver does not answer"),
            }
        }
        None
    }
}

/// Whether this is a response with the question's id.
fn is_answer(answer: &[u8], question: &[u8]) -> bool {
    answer.get(..2) == question.get(..2) && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => words.next()?.parse().ok(),
            _ => None,
        }
    })
}

async fn over_udp(resolver: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr =
        if resolver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    // Only the resolver's packets are received then.
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

async fn over_tcp(resolver: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(question).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_this_server_left_out() {
        let text = "search a\nnameserver 192.0.2.1 # one\n  nameserver ::1\nnameserver 192.0.2.2\n\
                    #nameserver 192.0.2.3\nnameserver 10.96.0.10\n";
        let own = [IpAddr::from([192, 0, 2, 2]), IpAddr::from([10, 96, 0, 10])];
        let forward = Forward::new(text, &own);
        let found: Vec<String> = forward.resolvers.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[::1]:53"]);
    }

    #[test]
    fn an_answer_is_a_response_to_the_question() {
        let question = [0, 7, 1, 0];
        assert!(is_answer(&[0, 7, 0x81, 0x80], &question));
        assert!(!is_answer(&[0, 8, 0x81, 0x80], &question));
        assert!(!is_answer(&question, &question));
        assert!(!is_answer(&[0, 7], &question));
    }
}
