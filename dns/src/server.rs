//! The wire: messages over UDP and TCP (RFC 1035, RFC 6891, RFC 7766).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::forward::Forward;
use crate::zone::{self, Answer, Data, Kind, TTL, View};

/// Answers over UDP to those who do not announce more (RFC 1035).
const SMALL: u16 = 512;
/// The most that we send over UDP: no fragments (DNS flag day 2020).
const LARGE: u16 = 1232;
/// TCP connections at once, and how long one may be idle.
const CONNECTIONS: usize = 256;
const IDLE: Duration = Duration::from_secs(10);
/// Links of an alias inside the zone that are followed.
const ALIASES: usize = 8;

pub struct Server<V> {
    view: V,
    forward: Forward,
    zone: String,
    dns: IpAddr,
    /// Which of several addresses is told first: each in its turn.
    turn: AtomicUsize,
}

impl<V: View + Send + Sync + 'static> Server<V> {
    /// A server of a zone (`cluster.local.`), itself reached by the service address `dns`.
    pub fn new(view: V, forward: Forward, zone: String, dns: IpAddr) -> Self {
        Self { view, forward, zone, dns, turn: AtomicUsize::default() }
    }

    /// Answers on UDP and TCP until shutdown, once `known` ends.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn run(
        self,
        listen: SocketAddr,
        known: impl Future<Output = ()>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let whence = || format!("cannot listen on {listen}");
        let udp = Arc::new(UdpSocket::bind(listen).await.with_context(whence)?);
        let tcp = TcpListener::bind(listen).await.with_context(whence)?;
        let server = Arc::new(self);
        // Before all is known, names would seem not to exist.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = async {
                known.await;
                tokio::join!(Arc::clone(&server).udp(udp), Arc::clone(&server).tcp(tcp));
            } => {}
        }
        Ok(())
    }

    /// Answers under way end with it: they hold the socket.
    async fn udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        let mut answers = JoinSet::new();
        loop {
            while answers.try_join_next().is_some() {}
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An earlier answer that nobody received, mostly.
                    tracing::debug!(%error, "receive");
                    continue;
                }
            };
            let question = buffer[..length].to_vec();
            let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
            let serve = async move {
                if let Some(answer) = server.answer(&question, false).await
                    && let Err(error) = socket.send_to(&answer, from).await
                {
                    tracing::debug!(%error, %from, "send");
                }
            };
            answers.spawn(serve);
        }
    }

    async fn tcp(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let server = Arc::clone(&self);
                    connections.spawn(async move {
                        if let Err(error) = server.connection(stream).await {
                            tracing::debug!(%error, %from, "connection");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let mut length = [0; 2];
            match tokio::time::timeout(IDLE, stream.read_exact(&mut length)).await {
                Ok(Ok(_)) => {}
                // The client has closed, or has nothing more to ask.
                Ok(Err(_)) | Err(_) => return Ok(()),
            }
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            tokio::time::timeout(IDLE, stream.read_exact(&mut question)).await??;
            let Some(answer) = self.answer(&question, true).await else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
            let bytes = [&length.to_be_bytes()[..], &answer].concat();
            // Who does not read would keep others out.
            tokio::time::timeout(IDLE, stream.write_all(&bytes)).await??;
        }
    }

    /// The bytes to send back; none to what is no question.
    async fn answer(&self, bytes: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let Ok(question) = Message::from_vec(bytes) else { return malformed(bytes) };
        if question.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut response = Message::response(question.metadata.id, question.metadata.op_code);
        response.metadata.recursion_desired = question.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(question.queries.iter().cloned());
        let version = question.edns.as_ref().map_or(0, Edns::version);
        let code = match (question.metadata.op_code, question.queries.as_slice()) {
            // Before anything else, says RFC 6891.
            _ if version > 0 => ResponseCode::BADVERS,
            (OpCode::Query, [query]) if query.query_class == DNSClass::IN => {
                let name = query.name.to_lowercase().to_ascii();
                let found = self.lookup(&name, kind(query.query_type));
                match found {
                    Some(answer) => {
                        self.fill(&mut response, &query.name, answer, query.query_type).await
                    }
                    None => match self.forward.ask(bytes, tcp).await {
                        Some(answer) => return Some(answer),
                        None => ResponseCode::ServFail,
                    },
                }
            }
            (OpCode::Query, [_]) => ResponseCode::Refused,
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        response.metadata.response_code = code;
        encode(response, &question, tcp)
    }

    fn lookup(&self, name: &str, kind: Kind) -> Option<Answer> {
        let name = if name.ends_with('.') { name.to_owned() } else { format!("{name}.") };
        zone::answer(&self.view, &self.zone, self.dns, &name, kind)
    }

    async fn fill(
        &self,
        response: &mut Message,
        name: &Name,
        answer: Answer,
        asked: RecordType,
    ) -> ResponseCode {
        response.metadata.authoritative = true;
        let mut records = answer.records;
        self.take_turns(&mut records);
        let alias = self.add(response, name, &records);
        for (target, ip) in &answer.additional {
            if let Ok(target) = Name::from_ascii(target) {
                response.add_additional(Record::from_rdata(target, TTL, address(*ip)));
            }
        }
        // Who asks for the alias itself is not led on.
        match alias.filter(|_| !matches!(asked, RecordType::CNAME | RecordType::ANY)) {
            Some(target) => self.follow(response, target, asked).await,
            None => {
                let nothing = response.answers.is_empty();
                self.end(response, answer.exists, nothing)
            }
        }
    }

    /// Adds the records of a name. Where it leads, if it is an alias.
    fn add(&self, response: &mut Message, name: &Name, records: &[Data]) -> Option<String> {
        let mut alias = None;
        for data in records {
            let Some(rdata) = self.rdata(data) else { continue };
            response.add_answer(Record::from_rdata(name.clone(), TTL, rdata));
            if let Data::Cname(target) = data {
                alias = Some(target.clone());
            }
        }
        alias
    }

    /// The code of an answer whose last name is in the zone; with nothing of that name it tells for
    /// how long (RFC 2308).
    fn end(&self, response: &mut Message, exists: bool, nothing: bool) -> ResponseCode {
        if nothing
            && let (Some(soa), Ok(zone)) = (self.rdata(&Data::Soa), Name::from_ascii(&self.zone))
        {
            response.add_authority(Record::from_rdata(zone, TTL, soa));
        }
        if exists { ResponseCode::NoError } else { ResponseCode::NXDomain }
    }

    /// Puts another of the addresses first each time: many clients take the first.
    fn take_turns(&self, records: &mut [Data]) {
        let is_address = |data: &Data| matches!(data, Data::Address(_));
        if records.len() > 1 && records.iter().all(is_address) {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            records.rotate_left(turn % records.len());
        }
    }

    /// Adds what an alias leads to, in the zone or outside. The code is that of the last name
    /// (RFC 6604).
    async fn follow(
        &self,
        response: &mut Message,
        mut target: String,
        asked: RecordType,
    ) -> ResponseCode {
        for _ in 0..ALIASES {
            let Ok(name) = Name::from_ascii(&target) else { break };
            if response.answers.iter().any(|record| record.name == name) {
                // Round and round.
                break;
            }
            let Some(answer) = self.lookup(&target, kind(asked)) else {
                return self.beyond(response, name, asked).await;
            };
            let before = response.answers.len();
            match self.add(response, &name, &answer.records) {
                Some(alias) => target = alias,
                None => {
                    let nothing = response.answers.len() == before;
                    return self.end(response, answer.exists, nothing);
                }
            }
        }
        ResponseCode::ServFail
    }

    /// Adds what others say of a name outside, where an alias leads.
    async fn beyond(&self, response: &mut Message, name: Name, asked: RecordType) -> ResponseCode {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        let mut wanted = hickory_proto::op::Query::new();
        wanted.name = name;
        wanted.query_type = asked;
        query.add_query(wanted);
        let Ok(bytes) = query.to_vec() else { return ResponseCode::ServFail };
        let found = self.forward.ask(&bytes, false).await;
        let found = found.and_then(|bytes| Message::from_vec(&bytes).ok());
        let Some(found) = found else { return ResponseCode::ServFail };
        let code = found.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return ResponseCode::ServFail;
        }
        response.add_answers(found.answers);
        let times = found.authorities.into_iter().filter(|r| r.record_type() == RecordType::SOA);
        response.add_authorities(times);
        code
    }

    fn rdata(&self, data: &Data) -> Option<RData> {
        let name = |text: &str| Name::from_ascii(text).ok();
        Some(match data {
            Data::Address(ip) => address(*ip),
            Data::Srv { port, target } => RData::SRV(SRV::new(0, 100, *port, name(target)?)),
            Data::Ptr(target) => RData::PTR(PTR(name(target)?)),
            Data::Cname(target) => RData::CNAME(CNAME(name(target)?)),
            Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
            Data::Ns(target) => RData::NS(NS(name(target)?)),
            Data::Soa => {
                let (server, mail) = (
                    name(&format!("ns.dns.{}", self.zone))?,
                    name(&format!("hostmaster.{}", self.zone))?,
                );
                RData::SOA(SOA::new(server, mail, 1, 7200, 1800, 86_400, TTL))
            }
        })
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn kind(asked: RecordType) -> Kind {
    match asked {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::CNAME => Kind::Cname,
        RecordType::TXT => Kind::Txt,
        RecordType::NS => Kind::Ns,
        RecordType::SOA => Kind::Soa,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

/// What is not a message, but long enough to have an id, is told so.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    let is_response = bytes.get(2)? & 0x80 != 0;
    if is_response {
        return None;
    }
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

/// Encodes; over UDP within what the client takes, with TC set when it does not fit.
fn encode(mut response: Message, question: &Message, tcp: bool) -> Option<Vec<u8>> {
    let limit = match &question.edns {
        Some(edns) => {
            let mut ours = Edns::new();
            ours.set_max_payload(LARGE);
            response.set_edns(ours);
            edns.max_payload().clamp(SMALL, LARGE)
        }
        None => SMALL,
    };
    let bytes = response.to_vec().ok()?;
    if tcp || bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    response.truncate().to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_too_long_is_cut_over_udp_only() {
        let mut question = Message::query();
        let mut query = hickory_proto::op::Query::new();
        query.name = Name::from_ascii("a.cluster.local.").expect("a name");
        question.add_query(query.clone());
        let mut response = Message::response(1, OpCode::Query);
        response.add_query(query.clone());
        for i in 0..100u8 {
            let ip = IpAddr::from([10, 0, 0, i]);
            response.add_answer(Record::from_rdata(query.name.clone(), TTL, address(ip)));
        }
        let udp = encode(response.clone(), &question, false).expect("bytes");
        assert!(udp.len() <= 512);
        assert!(Message::from_vec(&udp).expect("a message").metadata.truncation);
        let tcp = encode(response, &question, true).expect("bytes");
        assert_eq!(Message::from_vec(&tcp).expect("a message").answers.len(), 100);
    }

    #[test]
    fn rubbish_is_answered_at_most_with_an_error() {
        assert_eq!(malformed(&[1]), None);
        assert_eq!(malformed(&[0, 7, 0x80]), None, "a response is never answered");
        let answer = malformed(&[0, 7, 1, 2]).expect("an error");
        assert_eq!(answer[..2], [0, 7]);
    }

    fn server() -> Server<zone::tests::Cluster> {
        let dns = IpAddr::from([10, 96, 0, 10]);
        let forward = Forward::new("", &[]);
        Server::new(zone::tests::cluster(), forward, "cluster.local.".into(), dns)
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut question = Message::query();
        question.metadata.id = 7;
        let mut query = hickory_proto::op::Query::new();
        query.name = Name::from_ascii(name).expect("a name");
        query.query_type = kind;
        question.add_query(query);
        question
    }

    async fn ask(server: &Server<zone::tests::Cluster>, question: &Message) -> Message {
        let bytes = question.to_vec().expect("bytes");
        let answer = server.answer(&bytes, false).await.expect("an answer");
        Message::from_vec(&answer).expect("a message")
    }

    #[tokio::test]
    async fn names_that_are_not_there_are_told_from_records_that_are_not() {
        let server = server();
        for (name, kind, code, answers, soa) in [
            ("web.ns.svc.cluster.local.", RecordType::A, ResponseCode::NoError, 1, 0),
            ("web.ns.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError, 0, 1),
            ("web.ns.svc.cluster.local.", RecordType::MX, ResponseCode::NoError, 0, 1),
            ("none.ns.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain, 0, 1),
            ("far.ns.svc.cluster.local.", RecordType::CNAME, ResponseCode::NoError, 1, 0),
            // What it leads to is not ours, and there is nobody else to ask.
            ("far.ns.svc.cluster.local.", RecordType::A, ResponseCode::ServFail, 1, 0),
            ("example.com.", RecordType::A, ResponseCode::ServFail, 0, 0),
            ("near.ns.svc.cluster.local.", RecordType::A, ResponseCode::NoError, 2, 0),
            ("near.ns.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError, 1, 1),
            ("near.ns.svc.cluster.local.", RecordType::CNAME, ResponseCode::NoError, 1, 0),
            ("near.ns.svc.cluster.local.", RecordType::ANY, ResponseCode::NoError, 1, 0),
            ("lost.ns.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain, 1, 1),
            ("lost.ns.svc.cluster.local.", RecordType::CNAME, ResponseCode::NoError, 1, 0),
            ("to-lost.ns.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain, 2, 1),
            ("round.ns.svc.cluster.local.", RecordType::A, ResponseCode::ServFail, 2, 0),
            // Eight links are followed, and not more.
            ("link-2.ns.svc.cluster.local.", RecordType::A, ResponseCode::NoError, 9, 0),
            ("link-1.ns.svc.cluster.local.", RecordType::A, ResponseCode::ServFail, 9, 0),
        ] {
            let answer = ask(&server, &question(name, kind)).await;
            let ours = name.ends_with("cluster.local.");
            assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
            assert_eq!(answer.metadata.authoritative, ours, "{name} {kind}");
            assert_eq!(
                (answer.answers.len(), answer.authorities.len()),
                (answers, soa),
                "{name} {kind}"
            );
            assert_eq!(answer.metadata.id, 7);
            assert!(answer.answers.iter().chain(&answer.authorities).all(|r| r.ttl == TTL));
        }
    }

    /// A resolver that knows one name.
    async fn resolver() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let at = socket.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let Ok(asked) = Message::from_vec(&buffer[..length]) else { continue };
                let name = asked.queries[0].name.clone();
                let mut answer = Message::response(asked.metadata.id, OpCode::Query);
                match name.to_ascii().as_str() {
                    "example.com." => {
                        let ip = address(IpAddr::from([192, 0, 2, 1]));
                        answer.add_answer(Record::from_rdata(name, 60, ip));
                    }
                    "refused.example." => answer.metadata.response_code = ResponseCode::Refused,
                    _ => {
                        let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, 5);
                        answer.add_authority(Record::from_rdata(name, 60, RData::SOA(soa)));
                        answer.metadata.response_code = ResponseCode::NXDomain;
                    }
                }
                let bytes = answer.to_vec().expect("bytes");
                socket.send_to(&bytes, from).await.expect("sent");
            }
        });
        at
    }

    #[tokio::test]
    async fn an_alias_that_leads_outside_ends_as_others_say() {
        let forward = Forward::to(vec![resolver().await]);
        let server = Server { forward, ..server() };
        for (name, code, answers, soa) in [
            ("far.ns.svc.cluster.local.", ResponseCode::NoError, 2, 0),
            ("far-lost.ns.svc.cluster.local.", ResponseCode::NXDomain, 1, 1),
            ("refused.ns.svc.cluster.local.", ResponseCode::ServFail, 1, 0),
        ] {
            let answer = ask(&server, &question(name, RecordType::A)).await;
            assert_eq!(answer.metadata.response_code, code, "{name}");
            assert_eq!((answer.answers.len(), answer.authorities.len()), (answers, soa), "{name}");
        }
    }

    #[tokio::test]
    async fn a_name_comes_back_as_it_was_asked() {
        let answer = ask(&server(), &question("wEb.nS.SVC.cluster.LOCAL.", RecordType::A)).await;
        let names = answer.queries.iter().map(|q| &q.name);
        let names: Vec<String> =
            names.chain(answer.answers.iter().map(|r| &r.name)).map(ToString::to_string).collect();
        assert_eq!(names, ["wEb.nS.SVC.cluster.LOCAL."; 2]);
    }

    #[tokio::test]
    async fn addresses_take_turns() {
        let (server, question) = (server(), question("db.ns.svc.cluster.local.", RecordType::A));
        let mut first = std::collections::BTreeSet::new();
        for _ in 0..2 {
            let answer = ask(&server, &question).await;
            assert_eq!(answer.answers.len(), 2);
            first.insert(answer.answers[0].data.to_string());
        }
        assert_eq!(first.len(), 2, "{first:?}");
    }

    #[tokio::test]
    async fn what_a_client_takes_is_kept_to() {
        let server = server();
        let mut with_edns = question("web.ns.svc.cluster.local.", RecordType::A);
        assert!(ask(&server, &with_edns).await.edns.is_none(), "not to those who have not");
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        with_edns.set_edns(edns.clone());
        let answer = ask(&server, &with_edns).await;
        assert_eq!(answer.edns.map(|e| e.max_payload()), Some(LARGE));
        edns.set_version(1);
        with_edns.set_edns(edns);
        let answer = ask(&server, &with_edns).await;
        // The number has two names.
        assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));
        assert!(answer.answers.is_empty());
    }

    #[tokio::test]
    async fn questions_of_another_kind_are_refused() {
        let server = server();
        let mut none = question("web.ns.svc.cluster.local.", RecordType::A);
        none.queries.clear();
        assert_eq!(ask(&server, &none).await.metadata.response_code, ResponseCode::FormErr);
        let mut chaos = question("version.bind.", RecordType::TXT);
        chaos.queries[0].query_class = DNSClass::CH;
        assert_eq!(ask(&server, &chaos).await.metadata.response_code, ResponseCode::Refused);
        let mut notify = question("cluster.local.", RecordType::SOA);
        notify.metadata.op_code = OpCode::Notify;
        assert_eq!(ask(&server, &notify).await.metadata.response_code, ResponseCode::NotImp);
    }

    /// Answers by a socket's bytes, whatever they are: one at most, no longer than may be sent.
    fn survives(bytes: &[u8]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let answer = runtime.block_on(server().answer(bytes, false));
        if let Some(answer) = answer {
            assert!(answer.len() <= usize::from(LARGE));
            assert_eq!(answer[..2], bytes[..2], "the question's id");
            assert!(answer[2] & 0x80 != 0, "a response");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            survives(&bytes);
        }

        /// A good question with some bytes changed, cut or added.
        #[test]
        fn damaged_questions_are_survived(
            changes in proptest::collection::vec((0usize..120, proptest::num::u8::ANY), 0..8),
            length in 0usize..120,
        ) {
            let mut asked = question("_http._tcp.web.ns.svc.cluster.local.", RecordType::SRV);
            asked.set_edns(Edns::new());
            let mut bytes = asked.to_vec().expect("bytes");
            bytes.resize(length.max(bytes.len() / 2), 0xc0);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            survives(&bytes);
        }
    }
}
