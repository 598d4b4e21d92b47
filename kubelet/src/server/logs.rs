//! A container's log, as `kubectl logs` asks for it.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use component::serving::{Body, text};
use futures::TryStreamExt;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::kubelet::Kubelet;
use crate::logs::{Record, parse, written};
use crate::objects::{self, uid};
use crate::runtime::State;

/// Looking for more in a log that is followed.
const POLL: Duration = Duration::from_millis(200);
/// What is read at once from the end of a file.
const CHUNK: u64 = 64 << 10;

/// What is wanted of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit: Option<u64>,
    /// Only one of the streams: `Some(true)` for standard error.
    pub stderr: Option<bool>,
}

impl Wanted {
    /// From the query.
    ///
    /// # Errors
    /// A value that is none; status 400.
    pub fn of(query: &[(String, String)], now: Timestamp) -> Result<Self, String> {
        let mut wanted = Self::default();
        for (key, value) in query {
            let on = value == "true" || value == "1";
            let number = || value.parse::<i64>().map_err(|_| format!("invalid {key}: {value:?}"));
            match key.as_str() {
                "follow" => wanted.follow = on,
                "previous" => wanted.previous = on,
                "timestamps" => wanted.timestamps = on,
                "tailLines" => {
                    let lines = number()?;
                    wanted.tail = Some(u64::try_from(lines).map_err(|_| {
                        format!(
                            "tailLines: Invalid value: {lines}: must be greater than or equal to 0"
                        )
                    })?);
                }
                "limitBytes" => {
                    let bytes = number()?;
                    wanted.limit =
                        Some(u64::try_from(bytes).ok().filter(|b| *b > 0).ok_or_else(|| {
                            format!("limitBytes: Invalid value: {bytes}: must be greater than 0")
                        })?);
                }
                "sinceSeconds" => {
                    let seconds = number()?;
                    wanted.since = Timestamp::from_second(now.as_second() - seconds).ok();
                }
                "sinceTime" => {
                    let at = value.parse().map_err(|_| format!("invalid sinceTime: {value:?}"))?;
                    wanted.since = Some(at);
                }
                "stream" => {
                    wanted.stderr = match value.as_str() {
                        "Stdout" => Some(false),
                        "Stderr" => Some(true),
                        _ => None,
                    };
                }
                _ => {}
            }
        }
        Ok(wanted)
    }

    fn lets_through(&self, record: &Record<'_>) -> bool {
        self.stderr.is_none_or(|stderr| stderr == record.stderr)
            && self.since.is_none_or(|since| {
                record.timestamp.parse::<Timestamp>().map_or(true, |at| at >= since)
            })
    }
}

/// Answers with a container's log.
pub async fn serve(k: Arc<Kubelet>, pod: &Pod, container: &str, wanted: Wanted) -> Response<Body> {
    let view = match k.views.pod(uid(pod)).await {
        Ok(view) => view,
        Err(error) => return text(500, error.to_string()),
    };
    let mut of_name = view.containers.iter().filter(|c| c.name == container);
    let found = match wanted.previous {
        true => of_name
            .find(|c| {
                c.state == State::Exited && Some(&c.id) != view.container(container).map(|n| &n.id)
            })
            .or_else(|| {
                view.container(container)
                    .filter(|c| c.state == State::Exited && c.restart_count > 0)
            }),
        false => of_name.find(|c| c.state != State::Created),
    };
    let Some(found) = found else { return text(400, absent(pod, container, wanted.previous)) };
    let path = PathBuf::from(&found.log_path);
    let (id, running, ended) = (found.id.clone(), found.state == State::Running, found.finished_at);
    let (sender, receiver) = mpsc::channel::<Result<Bytes, anyhow::Error>>(16);
    tokio::spawn(async move {
        if !running {
            written(&path, ended).await;
        }
        let copying = copy(&k, &path, &id, running, wanted, &sender);
        if let Err(error) = copying.await {
            let _ = sender
                .send(Ok(Bytes::from(format!(
                    "unable to retrieve container logs for containerd://{id}: {error}\n"
                ))))
                .await;
        }
    });
    let stream = ReceiverStream::new(receiver).map_ok(Frame::data);
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    let kind = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Why there is no log: upstream's words.
fn absent(pod: &Pod, container: &str, previous: bool) -> String {
    let name = objects::name(pod);
    if previous {
        return format!("previous terminated container {container:?} in pod {name:?} not found");
    }
    let status = objects::status(pod);
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses)
        .flatten();
    let mut of_name = all.filter(|s| s.name == container);
    let waiting = of_name.find_map(|s| s.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    let why = match waiting {
        None => return format!("container {container:?} in pod {name:?} is not available"),
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
    };
    format!("container {container:?} in pod {name:?} is waiting to start: {why}")
}

async fn copy(
    k: &Kubelet,
    path: &Path,
    id: &str,
    mut running: bool,
    wanted: Wanted,
    sender: &mpsc::Sender<Result<Bytes, anyhow::Error>>,
) -> anyhow::Result<()> {
    let mut file = File::open(path).await?;
    if let Some(lines) = wanted.tail {
        let start = tail_offset(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    let mut reader = BufReader::new(file);
    let (mut line, mut left) = (Vec::new(), wanted.limit);
    let mut at_line_start = true;
    let mut idle = 0u32;
    loop {
        let read = reader.read_until(b'\n', &mut line).await?;
        if line.ends_with(b"\n") {
            line.pop();
            if let Some(record) = parse(&line).filter(|r| wanted.lets_through(r)) {
                let mut out = Vec::with_capacity(record.content.len() + 40);
                if wanted.timestamps && at_line_start {
                    out.extend_from_slice(record.timestamp.as_bytes());
                    out.push(b' ');
                }
                out.extend_from_slice(record.content);
                if record.ends_line {
                    out.push(b'\n');
                }
                at_line_start = record.ends_line;
                if let Some(left) = &mut left {
                    let cut = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len());
                    out.truncate(cut);
                    *left -= cut as u64;
                }
                if sender.send(Ok(Bytes::from(out))).await.is_err() || left == Some(0) {
                    return Ok(());
                }
            }
            line.clear();
            idle = 0;
            continue;
        }
        if read > 0 {
            continue;
        }
        // The end of the file, for now.
        if !wanted.follow || !running || sender.is_closed() {
            return Ok(());
        }
        idle += 1;
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = sender.closed() => return Ok(()),
            () = k.shutdown.cancelled() => return Ok(()),
        }
        if idle.is_multiple_of(5) {
            running = match k.cri.container(id).await {
                Ok(status) if State::of(status.state) == State::Running => true,
                Ok(status) => {
                    written(path, status.finished_at).await;
                    false
                }
                Err(_) => false,
            };
        }
        if replaced(path, reader.get_ref()).await {
            reader = BufReader::new(File::open(path).await?);
        }
    }
}

/// Whether the log was rotated: another file has its name.
async fn replaced(path: &Path, open: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (tokio::fs::metadata(path).await, open.metadata().await) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) != (open.dev(), open.ino()),
        _ => false,
    }
}

/// Where the last `lines` lines of a file begin; records of partial lines count as upstream
/// counts them, each for one.
async fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let end = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(end);
    }
    let (mut at, mut count) = (end, 0u64);
    while at > 0 {
        let start = at.saturating_sub(CHUNK);
        let mut chunk = vec![0; (at - start) as usize];
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut chunk).await?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            let position = start + index as u64;
            if *byte == b'\n' && position + 1 < end {
                count += 1;
                if count == lines {
                    return Ok(position + 1);
                }
            }
        }
        at = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let now = Timestamp::from_second(1000).unwrap();
        let query = |text: &str| component::cli::key_values(text).unwrap();
        let wanted =
            Wanted::of(&query("follow=true,tailLines=5,sinceSeconds=10,limitBytes=7"), now)
                .unwrap();
        assert!(wanted.follow);
        assert_eq!((wanted.tail, wanted.limit), (Some(5), Some(7)));
        assert_eq!(wanted.since.map(|t| t.as_second()), Some(990));
        for bad in ["tailLines=-1", "limitBytes=0", "sinceTime=x"] {
            assert!(Wanted::of(&query(bad), now).is_err(), "{bad}");
        }
    }

    #[test]
    fn absent_logs_are_explained() {
        let pod = |reason: &str| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "status": {
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"waiting": {"reason": reason}}}]}}))
            .unwrap()
        };
        for (reason, why) in [
            ("ContainerCreating", "is waiting to start: ContainerCreating"),
            ("ErrImagePull", "is waiting to start: image can't be pulled"),
        ] {
            let want = format!("container \"c\" in pod \"p\" {why}");
            assert_eq!(absent(&pod(reason), "c", false), want);
        }
    }

    #[tokio::test]
    async fn tails_are_found_across_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let lines: Vec<String> = (0..10_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, lines.concat()).unwrap();
        let mut file = File::open(&path).await.unwrap();
        let whole = lines.concat().len() as u64;
        assert_eq!(tail_offset(&mut file, 0).await.unwrap(), whole);
        for count in [1, 9_000, 10_000, 20_000] {
            let start = tail_offset(&mut file, count).await.unwrap();
            let wanted: usize = lines.iter().rev().take(count as usize).map(String::len).sum();
            assert_eq!(whole - start, wanted as u64, "{count}");
        }
    }
}
