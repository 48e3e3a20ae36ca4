//! The search as its callers see it. What needs the model is left out where that has not
//! been fetched or is not optimised, and says so.

use std::fs;
use std::io::{Write, stderr};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use microbatch_search::model::DIMENSIONS;
use microbatch_search::{
    Corpus, Error, Files, Index, MAX_TOKENS, Model, Noun, Options, Parts, SEARCHED, Scanner,
    Search, Tokenizer, Tokens, cache,
};
use rten::ThreadPool;
use tempfile::TempDir;

/// The files, or none where they have not been fetched.
fn fetched(test: &str) -> Option<Files> {
    let files = Files::fetched();
    match files.check() {
        Ok(()) => Some(files),
        Err(error) => {
            // Past the test's own output, which is shown only when it fails.
            let _ = writeln!(stderr(), "LEFT OUT: {test}: {error}");
            None
        }
    }
}

/// The files, where the model can be run in the time of a test as well.
fn with_model(test: &str) -> Option<Files> {
    if cfg!(debug_assertions) {
        let why = "a model that is not optimised takes minutes: cargo test --release";
        let _ = writeln!(stderr(), "LEFT OUT: {test}: {why}");
        return None;
    }
    fetched(test)
}

/// Definitions to embed, short and long ones.
const NOUNS: usize = 300;

/// A search of a few definitions, whose embeddings are kept in a folder of the tests' own.
fn parts(files: &Files) -> Arc<Parts> {
    static PARTS: OnceLock<Arc<Parts>> = OnceLock::new();
    let parts = PARTS.get_or_init(|| {
        let folder = folder_with(files);
        let files = Files::new(folder.path());
        let Corpus { searched, others } = Corpus::load(&files.nouns()).unwrap();
        let step = searched.len() / NOUNS;
        let nouns = searched.into_iter().step_by(step).take(NOUNS).collect();
        Arc::new(Parts::with(&files, nouns, others, 2).unwrap())
    });
    Arc::clone(parts)
}

/// A folder with the fetched files and no embeddings.
fn folder_with(files: &Files) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for path in [files.model(), files.vocabulary(), files.nouns()] {
        let link = folder.path().join(path.file_name().unwrap());
        fs::hard_link(&path, &link)
            .or_else(|_| fs::copy(&path, &link).map(drop))
            .unwrap();
    }
    folder
}

fn threads() -> Arc<ThreadPool> {
    Arc::new(ThreadPool::with_num_threads(1))
}

const BATCHED: Options = Options {
    threads: 2,
    max_batch_size: 32,
    similar: true,
};

#[test]
fn an_embedding_does_not_depend_on_its_neighbours() {
    let Some(files) = with_model("embeddings among others") else {
        return;
    };
    let parts = parts(&files);
    let texts = texts(&parts);
    let pool = threads();
    let alone: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| embed(&parts, &[text], &pool))
        .collect();
    // Each with the longest, in batches of several sizes, and in another order.
    for size in [2, 3, 8, 32] {
        for reversed in [false, true] {
            let mut order: Vec<usize> = (0..texts.len()).collect();
            if reversed {
                order.reverse();
            }
            for rows in order.chunks(size - 1) {
                let mut batch: Vec<&Tokens> = rows.iter().map(|&row| &texts[row]).collect();
                let longest = texts.iter().max_by_key(|text| text.len()).unwrap();
                batch.insert(batch.len() / 2, longest);
                assert_eq!(longest.len(), MAX_TOKENS);
                let mut among: Vec<&[f32]> = Vec::new();
                let embedded = embed(&parts, &batch, &pool);
                among.extend(embedded.chunks(DIMENSIONS));
                among.remove((batch.len() - 1) / 2);
                for (&row, among) in rows.iter().zip(among) {
                    let pairs = alone[row].iter().zip(among);
                    let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(off < 1e-5, "{off} off in a batch of {size}");
                }
            }
        }
    }
}

/// Texts of 3 to 128 tokens.
fn texts(parts: &Parts) -> Vec<Tokens> {
    let definitions = parts
        .others
        .iter()
        .step_by(131)
        .map(|noun| &noun.definition);
    let mut texts: Vec<String> = definitions.take(27).cloned().collect();
    texts.push("cat".to_owned());
    texts.push("cat ".repeat(MAX_TOKENS - 2));
    texts.push(texts[..5].join(" "));
    let texts = texts
        .iter()
        .map(|text| parts.tokenizer.encode(text).unwrap());
    let texts: Vec<Tokens> = texts.collect();
    assert_eq!(texts.iter().map(Tokens::len).min(), Some(3));
    texts
}

fn embed(parts: &Parts, texts: &[&Tokens], pool: &Arc<ThreadPool>) -> Vec<f32> {
    let texts: Vec<Tokens> = texts.iter().map(|&text| text.clone()).collect();
    parts.model.embed(&texts, pool).unwrap()
}

#[test]
fn sixty_four_callers_get_their_own_answers() {
    let Some(files) = with_model("many callers") else {
        return;
    };
    let parts = parts(&files);
    let definitions = parts.nouns.iter().map(|noun| noun.definition.clone());
    // In part of one definition, and in part a long text of several.
    let definitions: Vec<String> = definitions.collect();
    let queries = (0..64).map(|caller| match caller % 4 {
        3 => definitions[caller..caller + 3].join(" "),
        _ => definitions[caller * 3].clone(),
    });
    let queries: Vec<String> = queries.collect();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let search = |options| runtime.block_on(Search::start(&parts, options)).unwrap();
    let single = search(Options {
        max_batch_size: 1,
        ..BATCHED
    });
    let alone = queries
        .iter()
        .map(|query| answers(&runtime.block_on(single.search(query)).unwrap()));
    let alone: Vec<_> = alone.collect();
    let counted = single.counted();
    assert_eq!((counted.batches, counted.queries), (64, 64));
    assert_eq!(counted.tokens, counted.computed);

    for similar in [false, true] {
        let search = Arc::new(search(Options { similar, ..BATCHED }));
        let among = runtime.block_on(async {
            let callers = queries.iter().map(|query| {
                let (search, query) = (Arc::clone(&search), query.clone());
                tokio::spawn(async move { answers(&search.search(&query).await.unwrap()) })
            });
            let callers: Vec<_> = callers.collect();
            let mut among = Vec::new();
            for caller in callers {
                among.push(caller.await.unwrap());
            }
            search.stop().await.unwrap();
            among
        });
        for (caller, (alone, among)) in alone.iter().zip(&among).enumerate() {
            for ((word, score), (among_word, among_score)) in alone.iter().zip(among) {
                assert!((score - among_score).abs() < 1e-4, "caller {caller}");
                assert_eq!(word, among_word, "caller {caller}");
            }
            assert_eq!((alone.len(), among.len()), (5, 5));
            if caller % 4 != 3 {
                assert_eq!(among[0].0, parts.nouns[caller * 3].definition);
                assert!(among[0].1 > 0.999);
            }
        }
        let counted = search.counted();
        assert_eq!(counted.queries, 64);
        assert!(counted.batches < 32, "{} batches", counted.batches);
    }
}

/// The definitions that were found, and their scores. A definition that two nouns share
/// is as good as itself.
fn answers(found: &[microbatch_search::Found<'_>]) -> Vec<(String, f32)> {
    let found = found.iter();
    found
        .map(|found| (found.noun.definition.clone(), found.score))
        .collect()
}

#[tokio::test]
async fn a_query_finds_what_means_the_same() {
    let Some(files) = with_model("what a query finds") else {
        return;
    };
    let noun = |word: &str, definition: &str| Noun {
        word: word.to_owned(),
        definition: definition.to_owned(),
    };
    let nouns = vec![
        noun("kitten", "young domestic cat"),
        noun("honey", "a sweet yellow liquid produced by bees"),
        noun("wage", "something that remunerates"),
        noun("clock", "a timepiece that shows the time of day"),
    ];
    let folder = folder_with(&files);
    let files = Files::new(folder.path());
    let parts = Arc::new(Parts::with(&files, nouns, Vec::new(), 1).unwrap());
    let search = Search::start(&parts, BATCHED).await.unwrap();
    for (query, word) in [
        ("the little animal that purrs", "kitten"),
        ("it comes out of a hive and one eats it with bread", "honey"),
        ("what one gets for labour", "wage"),
        ("how late is it?", "clock"),
    ] {
        let found = search.search(query).await.unwrap();
        assert_eq!(found[0].noun.word, word, "{query}");
        // There are four, not five.
        assert_eq!(found.len(), 4);
    }
}

#[tokio::test]
async fn a_text_that_is_empty_or_too_long_is_refused_alone() {
    let Some(files) = with_model("texts that are refused") else {
        return;
    };
    let parts = parts(&files);
    let search = Search::start(&parts, BATCHED).await.unwrap();
    let long = "cat ".repeat(MAX_TOKENS - 1);
    let (refused, empty, answered) = tokio::join!(
        search.search(&long),
        search.search(" \n"),
        search.search("cat")
    );
    assert!(matches!(
        refused,
        Err(Error::TooLong { tokens, limit: MAX_TOKENS }) if tokens == MAX_TOKENS + 1
    ));
    assert!(matches!(empty, Err(Error::Empty)));
    assert_eq!(answered.unwrap().len(), 5);
    assert_eq!(search.counted().queries, 1);
}

#[test]
fn tokens_are_those_of_bert() {
    let Some(files) = fetched("tokens") else {
        return;
    };
    let tokenizer = Tokenizer::load(&files.vocabulary()).unwrap();
    let ids = |text: &str| tokenizer.encode(text).unwrap().ids().to_vec();
    assert_eq!(ids("hello world"), [101, 7592, 2088, 102]);
    // Small and capital letters are the same, and so are letters with accents.
    assert_eq!(ids("Héllo WORLD"), ids("hello world"));
    // A word in pieces, and punctuation.
    assert_eq!(
        ids("embeddings, unaffable!"),
        [
            101, 7861, 8270, 4667, 2015, 1010, 14477, 20961, 3468, 999, 102
        ]
    );
    // A bracket is a word of its own, and not the start of a special token.
    assert_eq!(ids("[a]"), [101, 1031, 1037, 1033, 102]);
    assert_eq!(ids("\u{1F980}"), [101, 100, 102]);
}

#[test]
fn a_malformed_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new(folder.path());
    let check = |path: &Path, load: &dyn Fn(&Path) -> Error, contents: &[(&[u8], &str)]| {
        let missing = load(path);
        assert!(
            matches!(&missing, Error::Missing { path: at } if at == path),
            "{missing}"
        );
        assert!(
            missing
                .to_string()
                .ends_with("is missing: run examples/search/fetch")
        );
        for (bytes, why) in contents {
            fs::write(path, bytes).unwrap();
            let error = load(path);
            assert!(
                matches!(&error, Error::Malformed { path: at, .. } if at == path),
                "{error}"
            );
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
    };
    check(
        &files.model(),
        &|path| Model::load(path).unwrap_err(),
        &[(b"", ""), (b"no model", ""), (&[8, 7, 58, 255, 255, 3], "")],
    );
    check(
        &files.vocabulary(),
        &|path| Tokenizer::load(path).unwrap_err(),
        &[
            (b"[\"[CLS]\"", "line 1"),
            (b"{}", "expected a sequence"),
            (b"[\"[CLS]\", \"[UNK]\"]", "it has no [SEP]"),
        ],
    );
    check(
        &files.nouns(),
        &|path| Corpus::load(path).unwrap_err(),
        &[
            (b"", "0 plain nouns"),
            (b"  1 licence\nrubbish\n", "line 2 is no noun"),
            (b"00001740 03 n 01 entity 0 000 |\n", "line 1 is no noun"),
            (
                b"00001740 03 n 01 entity 0 000 | what is\n",
                "1 plain nouns",
            ),
            (&[0xff, 0xfe], "it is no text"),
        ],
    );
}

#[test]
fn the_nouns_are_the_common_ones() {
    let Some(files) = fetched("the nouns") else {
        return;
    };
    let corpus = Corpus::load(&files.nouns()).unwrap();
    assert_eq!(corpus.searched.len(), SEARCHED);
    let kitten = |nouns: &[Noun]| {
        let found = nouns.iter().find(|noun| noun.word == "kitten");
        found.map(|noun| noun.definition.clone())
    };
    assert_eq!(
        kitten(&corpus.searched).as_deref(),
        Some("young domestic cat")
    );
    assert_eq!(kitten(&corpus.others), None);
}

#[test]
fn kept_vectors_are_used_only_if_they_are_whole_and_the_right_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = Files::new(folder.path()).embeddings();
    let vectors: Vec<f32> = (0..3 * DIMENSIONS).map(|x| x as f32 / 7.0).collect();
    assert_eq!(cache::read(&path, 7, 3).unwrap(), None);
    cache::write(&path, 7, &vectors).unwrap();
    assert_eq!(cache::read(&path, 7, 3).unwrap(), Some(vectors.clone()));
    // There is nothing else in the folder.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(cache::read(&path, 8, 3).unwrap(), None);
    assert_eq!(cache::read(&path, 7, 2).unwrap(), None);

    let whole = fs::read(&path).unwrap();
    for len in [0, 1, 8, 23, 24, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(cache::read(&path, 7, 3).unwrap(), None, "{len} bytes");
    }
    for place in [0, 8, 16, 24, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[place] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert_eq!(cache::read(&path, 7, 3).unwrap(), None, "byte {place}");
    }
    let nowhere = folder.path().join("no folder").join("embeddings.bin");
    assert!(
        matches!(cache::write(&nowhere, 7, &vectors), Err(Error::Io { path, .. }) if path == nowhere)
    );
}

#[test]
fn a_foreign_file_of_embeddings_is_made_anew() {
    let Some(files) = with_model("embeddings made anew") else {
        return;
    };
    let folder = folder_with(&files);
    let files = Files::new(folder.path());
    let load = || {
        let nouns = vec![Noun {
            word: "kitten".to_owned(),
            definition: "young domestic cat".to_owned(),
        }];
        Parts::with(&files, nouns, Vec::new(), 1).unwrap()
    };
    load();
    let made = fs::read(files.embeddings()).unwrap();
    for foreign in [&b"foreign"[..], &made[..made.len() - 4]] {
        fs::write(files.embeddings(), foreign).unwrap();
        assert_eq!(load().index.rows(), 1);
        assert_eq!(fs::read(files.embeddings()).unwrap(), made);
    }
}

#[test]
fn the_scan_finds_what_a_plain_loop_finds() {
    let mut seed = 1_u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut vectors =
        |rows: usize| -> Vec<f32> { (0..rows * DIMENSIONS).map(|_| next()).collect() };
    let (index, queries) = (vectors(1000), vectors(33));
    let packed = Index::new(&index);
    let mut scanner = Scanner::new(threads());
    for count in [1, 2, 33] {
        let queries = &queries[..count * DIMENSIONS];
        let found = scanner.best(&packed, queries, 5).unwrap();
        assert_eq!(found.len(), count);
        for (query, hits) in queries.chunks(DIMENSIONS).zip(found) {
            let product = |row: &[f32]| -> f32 { row.iter().zip(query).map(|(a, b)| a * b).sum() };
            let mut scores: Vec<f32> = index.chunks(DIMENSIONS).map(product).collect();
            for hit in &hits {
                assert!((scores[hit.row] - hit.score).abs() < 1e-4);
            }
            scores.sort_by(|a, b| b.total_cmp(a));
            for (hit, score) in hits.iter().zip(&scores) {
                assert!((hit.score - score).abs() < 1e-4);
            }
            assert_eq!(hits.len(), 5);
        }
    }
    let none = scanner.best(&Index::new(&[]), &queries[..DIMENSIONS], 5);
    assert_eq!(none.unwrap(), [vec![]]);
}
