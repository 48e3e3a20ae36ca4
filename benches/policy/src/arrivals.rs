//! When jobs arrive, in ticks of virtual time, from seeds that never change.

/// One tick is a millisecond of Tokio's clock, the finest its timer knows. The
/// setup of a batch takes this many, so that rounding is one part in 100 000.
pub const SETUP: u64 = 100_000;

/// What one more job adds to a batch.
pub const PER_JOB: u64 = SETUP / 10;

/// How long the spells of [`Kind::OnOff`] last in the mean, in setups.
const ON: f64 = 2.0;
const OFF: f64 = 6.0;

/// Jobs in a volley of [`Kind::Volleys`], in the mean.
const VOLLEY: f64 = 10.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Poisson,
    /// Poisson at four times the rate while on, nothing while off; spells of
    /// exponential length, on for a quarter of the time.
    OnOff,
    /// Poisson, but a geometric number of jobs each time, at the same tick.
    Volleys,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Poisson => "Poisson",
            Self::OnOff => "on/off",
            Self::Volleys => "volleys",
        }
    }

    /// The times at which this many jobs arrive, `rate` a setup in the mean.
    pub fn arrivals(self, rate: f64, jobs: usize, seed: u64) -> Vec<u64> {
        let mut random = Random(seed);
        let mut times = Vec::with_capacity(jobs);
        let mut now = 0.0;
        let mut on_until = random.exponential(ON);
        while times.len() < jobs {
            match self {
                Self::Poisson => now += random.exponential(1.0 / rate),
                Self::OnOff => {
                    let next = now + random.exponential(ON / (ON + OFF) / rate);
                    if next > on_until {
                        // Without memory, so the gap is drawn anew.
                        now = on_until + random.exponential(OFF);
                        on_until = now + random.exponential(ON);
                        continue;
                    }
                    now = next;
                }
                Self::Volleys => {
                    if times.is_empty() || random.unit() < 1.0 / VOLLEY {
                        now += random.exponential(VOLLEY / rate);
                    }
                }
            }
            times.push((now * SETUP as f64) as u64);
        }
        times
    }
}

/// SplitMix64: the same digits on every machine and in every version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From zero up to but not including one.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_keeps_its_rate() {
        for kind in [Kind::Poisson, Kind::OnOff, Kind::Volleys] {
            let times = kind.arrivals(2.0, 200_000, 7);
            assert!(times.is_sorted());
            let last = times[times.len() - 1] as f64 / SETUP as f64;
            let rate = times.len() as f64 / last;
            assert!((rate - 2.0).abs() < 0.05, "{}: {rate}", kind.name());
        }
    }
}
