//! What `/metrics` shows, in Prometheus' text format.

use std::fmt::Write as _;

/// What a family of samples is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page of families, one after the other.
#[derive(Default)]
pub struct Page {
    out: String,
}

impl Page {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let before = if i == 0 { '{' } else { ',' };
            let _ = write!(self.out, "{before}{label}=\"{value}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.out, "{end} {value}");
    }

    /// A family of one sample.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The samples of a histogram.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let bounds = histogram.bounds.iter().map(f64::to_string);
        let counts = histogram.buckets.iter().chain([&histogram.count]);
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(counts) {
            let all = [labels, &[("le", bound.as_str())]].concat();
            self.sample(&bucket, &all, *count as f64);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum);
        self.sample(&format!("{name}_count"), labels, histogram.count as f64);
    }

    /// What client libraries say of the process itself, as far as the kernel tells it.
    pub fn process(&mut self) {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let texts = ["/proc/self/stat", "/proc/self/limits", "/proc/stat"].map(read);
        let [stat, limits, system] = &texts;
        for (name, kind, help, value) in process(stat, limits, system, files) {
            self.single(name, kind, help, value);
        }
    }

    /// Whether a component is the one of its name that works.
    pub fn leader(&mut self, name: &str, leads: bool) {
        let family = "leader_election_master_status";
        let help = "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. 'name' is the string used to identify the lease. Please make sure to group by name.";
        self.family(family, Kind::Gauge, help);
        self.sample(family, &[("name", name)], f64::from(u8::from(leads)));
    }

    pub fn text(self) -> String {
        self.out
    }
}

type Single = (&'static str, Kind, &'static str, f64);

/// Ticks of the kernel's clock in a second, and bytes of a page: the same wherever we run.
const TICKS: f64 = 100.0;
const PAGE: f64 = 4096.0;

/// From proc(5): the process' `stat` and `limits`, the system's `stat`, and how many files are open.
fn process(stat: &str, limits: &str, system: &str, files: usize) -> Vec<Single> {
    // The name, which is in brackets, may hold anything.
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    // By the numbers of the manual, which begin with 1.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
    let after = |text: &str, start: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(start))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let booted = after(system, "btime").unwrap_or(0.0);
    vec![
        (
            "process_cpu_seconds_total",
            Kind::Counter,
            "Total user and system CPU time spent in seconds.",
            (field(14) + field(15)) / TICKS,
        ),
        (
            "process_max_fds",
            Kind::Gauge,
            "Maximum number of open file descriptors.",
            after(limits, "Max open files").unwrap_or(0.0),
        ),
        ("process_open_fds", Kind::Gauge, "Number of open file descriptors.", files as f64),
        (
            "process_resident_memory_bytes",
            Kind::Gauge,
            "Resident memory size in bytes.",
            field(24) * PAGE,
        ),
        (
            "process_start_time_seconds",
            Kind::Gauge,
            "Start time of the process since unix epoch in seconds.",
            booted + field(22) / TICKS,
        ),
        ("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes.", field(23)),
    ]
}

/// Values, counted by upper bounds.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    buckets: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, buckets: vec![0; bounds.len()], count: 0, sum: 0.0 }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn observe(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        for (bucket, bound) in self.buckets.iter_mut().zip(self.bounds) {
            *bucket += u64::from(value <= *bound);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_prometheus_reads_it() {
        let mut page = Page::default();
        page.single("up", Kind::Gauge, "Whether.", 1.0);
        page.family("took", Kind::Histogram, "How long.");
        let mut took = Histogram::new(&[0.1, 1.0]);
        [0.05, 0.5, 5.0].into_iter().for_each(|value| took.observe(value));
        page.histogram("took", &[("what", "a\"b\\")], &took);
        let want = "# HELP up Whether.\n# TYPE up gauge\nup 1\n\
            # HELP took How long.\n# TYPE took histogram\n\
            took_bucket{what=\"a\\\"b\\\\\",le=\"0.1\"} 1\n\
            took_bucket{what=\"a\\\"b\\\\\",le=\"1\"} 2\n\
            took_bucket{what=\"a\\\"b\\\\\",le=\"+Inf\"} 3\n\
            took_sum{what=\"a\\\"b\\\\\"} 5.55\ntook_count{what=\"a\\\"b\\\\\"} 3\n";
        assert_eq!(page.text(), want);
    }

    #[test]
    fn a_process_is_told_as_the_kernel_has_it() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1200 8192 3 18446744073709551615";
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            20000                20000                files\n";
        let got = process(stat, limits, "cpu 1 2\nbtime 1000\n", 5);
        let got: Vec<(&str, f64)> =
            got.into_iter().map(|(name, .., value)| (name, value)).collect();
        let want = [
            ("process_cpu_seconds_total", 3.0),
            ("process_max_fds", 20000.0),
            ("process_open_fds", 5.0),
            ("process_resident_memory_bytes", 3.0 * 4096.0),
            ("process_start_time_seconds", 1012.0),
            ("process_virtual_memory_bytes", 8192.0),
        ];
        assert_eq!(got, want);
    }
}
