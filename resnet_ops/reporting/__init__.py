"""What a person looks at: charts by matplotlib, pages that need no network. Reads run directories, never trains."""
